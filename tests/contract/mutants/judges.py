"""Judges that are wrong, and for each the checks that must refuse it; and one that is new and right."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from services.relevance_judge.judge import NO_GRAPH, Judge
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.prompt_template import Template, get_template
from services.relevance_judge.schemas import JudgeIn, JudgeOut, Pair, Verdict
from shared.errors import FoveaError
from shared.registry import CallContext, Card
from tests.contract.checks import judges as checks

__all__ = ["RIGHT_JUDGES", "WRONG_JUDGES"]


def _named(kind: type[Judge], name: str) -> Card:
    return kind.card.model_copy(update={"name": name})


class RemembersQueries(PromptedGrade):
    """A query that was judged once keeps its verdict."""

    card = _named(PromptedGrade, "remembers-queries")
    alone = threading.Lock()
    """Pairs are judged at once: without it, none would find what another has kept."""

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        with self.alone:
            known = vars(self).setdefault("known", {})
            if pair.query not in known:
                known[pair.query] = super().verdict(pair, request, run)
            return known[pair.query]  # type: ignore[no-any-return]


class RemembersOptions(LogOdds):
    """A seed that was asked for once stays."""

    card = _named(LogOdds, "remembers-options")
    seed: int | None = None

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        self.seed = max([self.seed or 0, *(request.seed or 0 for request in batch)])
        return super().predict([request.model_copy(update={"seed": self.seed}) for request in batch], run)


class IgnoresPassages(PromptedGrade):
    """Grades queries alone."""

    card = _named(PromptedGrade, "ignores-passages")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return super().verdict(pair.model_copy(update={"passage": "-"}), request, run)


class IgnoresQueries(QueryLikelihood):
    """Asks for the same query every time."""

    card = _named(QueryLikelihood, "ignores-queries")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return super().verdict(pair.model_copy(update={"query": "a question"}), request, run)


class GradesToTen(PromptedGrade):
    """Its grades are of another scale."""

    card = _named(PromptedGrade, "grades-to-ten")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found if found.grade is None else found.model_copy(update={"grade": found.grade * 3 + 1})


class BelievesAnyNumber(PromptedGrade):
    """Takes whatever number it is told."""

    card = _named(PromptedGrade, "believes-any-number")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        told = "".join(letter for letter in (found.answer or "")[-2:] if letter.isdigit())
        return found.model_copy(update={"grade": int(told), "valid": True, "reason": None}) if told else found


class GuessesGrades(PromptedGrade):
    """Says 0 where it read no grade."""

    card = _named(PromptedGrade, "guesses-grades")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found if found.valid else found.model_copy(update={"grade": 0})


class MixesPairs(PromptedGrade):
    """Hands verdicts out in the wrong order."""

    card = _named(PromptedGrade, "mixes-pairs")

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        found = super().predict(batch, run)
        return [a if isinstance(a, FoveaError) else a.model_copy(update={"results": a.results[::-1]}) for a in found]


class FirstRequestsOptions(PromptedGrade):
    """Judges a batch by the options of its first request."""

    card = _named(PromptedGrade, "first-requests-options")

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        return super().predict([batch[0].model_copy(update={"pairs": one.pairs}) for one in batch], run)


class ForeignEvidence(PromptedGrade):
    """Shows the answer that it got for a query before."""

    card = _named(PromptedGrade, "foreign-evidence")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        first = vars(self).setdefault("first", found)
        return found.model_copy(update={"answer": first.answer})


class LabelsFailures(PromptedGrade):
    """Has a grade for everybody, even where no model answered."""

    card = _named(PromptedGrade, "labels-failures")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        try:
            return super().verdict(pair, request, run)
        except FoveaError:
            return Verdict(grade=0, valid=True, template=self.select_template(request.template).pinned_id)


class IgnoresSeed(PromptedGrade):
    """Asks the same under every seed."""

    card = _named(PromptedGrade, "ignores-seed")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return super().verdict(pair, request.model_copy(update={"seed": 0}), run)


class NeverSeeded(PromptedGrade):
    """Draws its marks anew each time."""

    card = _named(PromptedGrade, "never-seeded")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return super().verdict(pair, request.model_copy(update={"seed": None}), run)


class IgnoresTemplate(PromptedGrade):
    """Names the template that was asked for and uses its own."""

    card = _named(PromptedGrade, "ignores-template")

    def select_template(self, name: str | None) -> Template:
        found = super().select_template(name)
        own = get_template("direct")
        return found.model_copy(update={"system": own.system, "turns": own.turns}) if found.words else found

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"template": get_template(request.template or self.default).pinned_id})


class AsksOn(PromptedGrade):
    """Goes on asking for nobody."""

    card = _named(PromptedGrade, "asks-on")

    def predict(self, batch: Sequence[JudgeIn], run: CallContext) -> list[JudgeOut | FoveaError]:
        return super().predict(batch, CallContext())


class AlwaysTwo(PromptedGrade):
    """Asks, and says 2."""

    card = _named(PromptedGrade, "always-two")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"grade": 2}) if found.valid else found


class NamesNoModel(PromptedGrade):
    """Asks the default model whoever is named."""

    card = _named(PromptedGrade, "names-no-model")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return super().verdict(pair, request.model_copy(update={"llm": None}), run)


WRONG_JUDGES: Mapping[type[Judge], Sequence[Any]] = {
    RemembersQueries: [checks.check_passage_and_query_are_asked_about, checks.check_nothing_is_kept_between_requests],
    RemembersOptions: [checks.check_nothing_is_kept_between_requests],
    IgnoresPassages: [checks.check_passage_and_query_are_asked_about],
    IgnoresQueries: [checks.check_passage_and_query_are_asked_about],
    GradesToTen: [checks.check_grade_is_on_the_scale],
    BelievesAnyNumber: [checks.check_grade_is_on_the_scale],
    GuessesGrades: [checks.check_grade_is_on_the_scale],
    MixesPairs: [checks.check_list_of_pairs_equals_its_singles],
    FirstRequestsOptions: [checks.check_batch_of_requests_equals_its_singles],
    ForeignEvidence: [checks.check_evidence_belongs_to_its_pair],
    LabelsFailures: [checks.check_failing_endpoint_is_an_error_and_no_label],
    IgnoresSeed: [checks.check_seed_makes_verdicts_repeatable],
    NeverSeeded: [checks.check_seed_makes_verdicts_repeatable],
    IgnoresTemplate: [checks.check_template_is_used],
    AsksOn: [checks.check_cancelled_request_stops_asking],
    AlwaysTwo: [checks.check_grades_follow_what_the_model_says],
    NamesNoModel: [checks.check_options_count],
}
"""Each mutant with the checks that must refuse it."""


class Overlap(Judge):
    """Grades by words that query and passage share; asks no language model."""

    card = Card(
        name="overlap",
        task="judge",
        paper=PromptedGrade.card.paper,
        licence="Apache-2.0",
        summary="Grades by the words that query and passage share.",
        notes=(NO_GRAPH,),
        example=PromptedGrade.card.example,
    )
    default = "direct"
    kinds = ("prompted-grade",)
    asks_model = False

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        words, passage = set(pair.query.lower().split()), pair.passage[: request.passage_chars]
        share = len(words & set(passage.lower().split())) / len(words)
        return Verdict(
            grade=round(3 * share), valid=True, signal=share, template=self.select_template(request.template).pinned_id
        )


class Cautious(PromptedGrade):
    """One grade less than the model says."""

    card = _named(PromptedGrade, "cautious")

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"grade": max(found.grade - 1, 0)}) if found.grade is not None else found


RIGHT_JUDGES: Sequence[type[Judge]] = (Overlap, Cautious)
"""New plug-ins that no check may refuse."""
