"""Judges that are wrong, and for each the checks that must refuse it."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fovea.errors import FoveaError
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.prompt_template import Template, get_template
from services.relevance_judge.schemas import JudgeIn, JudgeOut, Pair, Verdict
from shared.registry import CallContext
from tests.contract.checks import judges as checks
from tests.contract.mutants import Change, changed, each, same, wrong


def judges(
    name: str, base: type[Judge] = PromptedGrade, pair: Change = same, request: Change = same, verdict: Change = same
) -> type[Judge]:
    """A judge that judges another pair or request than it is asked about, or tells another verdict."""

    def judge(self: Any, about: Pair, asked: JudgeIn, run: CallContext) -> Verdict:
        return verdict(base.verdict(self, pair(about), request(asked), run))

    return wrong(name, base, verdict=judge)


class RemembersQueries(PromptedGrade):
    """A query that was judged once keeps its verdict."""

    alone = threading.Lock()
    """Pairs are judged at once: without it, none would find what another has kept."""

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        with self.alone:
            known = vars(self).setdefault("known", {})
            if pair.query not in known:
                known[pair.query] = super().verdict(pair, request, run)
            return known[pair.query]


class RemembersOptions(LogOdds):
    """A seed that was asked for once stays."""

    seed: int | None = None

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        self.seed = max([self.seed or 0, *(request.seed or 0 for request in batch)])
        return super().predict([request.model_copy(update={"seed": self.seed}) for request in batch], run)


class ForeignEvidence(PromptedGrade):
    """Shows the answer that it got for a query before."""

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"answer": vars(self).setdefault("first", found).answer})


class LabelsFailures(PromptedGrade):
    """Has a grade for everybody, even where no model answered."""

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        try:
            return super().verdict(pair, request, run)
        except FoveaError:
            return Verdict(grade=0, valid=True, template=self.select_template(request.template).pinned_id)


class IgnoresTemplate(PromptedGrade):
    """Names the template that was asked for and uses its own."""

    def select_template(self, name: str | None) -> Template:
        found, own = super().select_template(name), get_template("direct")
        return found.model_copy(update={"system": own.system, "turns": own.turns}) if found.words else found

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"template": get_template(request.template or self.default).pinned_id})


def _to_ten(one: Verdict) -> Verdict:
    return one if one.grade is None else one.model_copy(update={"grade": one.grade * 3 + 1})


def _zero_for_none(one: Verdict) -> Verdict:
    return one if one.valid else one.model_copy(update={"grade": 0})


def _always_two(one: Verdict) -> Verdict:
    return one.model_copy(update={"grade": 2}) if one.valid else one


def _first_options(batch: Sequence[JudgeIn]) -> list[JudgeIn]:
    return [batch[0].model_copy(update={"pairs": one.pairs}) for one in batch]


_backwards = each(lambda told: told.model_copy(update={"results": told.results[::-1]}))

WRONG_JUDGES: Mapping[type[Judge], Sequence[Any]] = {
    RemembersQueries: [checks.check_passage_and_query_are_asked_about, checks.check_nothing_is_kept_between_requests],
    RemembersOptions: [checks.check_nothing_is_kept_between_requests],
    ForeignEvidence: [checks.check_evidence_belongs_to_its_pair],
    LabelsFailures: [checks.check_failing_endpoint_is_an_error_and_no_label],
    IgnoresTemplate: [checks.check_template_is_used],
    judges("IgnoresPassages", pair=changed(passage="-")): [checks.check_passage_and_query_are_asked_about],
    judges("IgnoresQueries", QueryLikelihood, changed(query="a question")): [
        checks.check_passage_and_query_are_asked_about
    ],
    judges("GradesToTen", verdict=_to_ten): [checks.check_grade_is_on_the_scale],
    judges("GuessesGrades", verdict=_zero_for_none): [checks.check_grade_is_on_the_scale],
    judges("AlwaysTwo", verdict=_always_two): [checks.check_grades_follow_what_the_model_says],
    judges("IgnoresSeed", request=changed(seed=0)): [checks.check_seed_makes_verdicts_repeatable],
    judges("NeverSeeded", request=changed(seed=None)): [checks.check_seed_makes_verdicts_repeatable],
    judges("NamesNoModel", request=changed(llm=None)): [checks.check_options_count],
    wrong("MixesPairs", PromptedGrade, tell=_backwards): [checks.check_list_of_pairs_equals_its_singles],
    wrong("FirstRequestsOptions", PromptedGrade, _first_options): [checks.check_batch_of_requests_equals_its_singles],
    wrong("AsksOn", PromptedGrade, under=lambda _: CallContext()): [checks.check_cancelled_request_stops_asking],
}
"""Each mutant with the checks that must refuse it."""
