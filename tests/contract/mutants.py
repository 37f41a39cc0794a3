"""Plug-ins that are wrong in one way each, with the checks that must refuse them. Nothing of the product finds them."""

import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel

from fovea.api.mask import SegmentIn, SegmentOut
from fovea.errors import FoveaError
from fovea_circuits.experiments.deconstruction import Deconstruction
from fovea_memory.models.fovea_titans import TitansMAG
from services.interpretability.core.experiment import Experiment, Progress
from services.interpretability.core.model_registry import TINY
from services.interpretability.core.report import Report, Scalar
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.head_patterns import HeadPatterns
from services.interpretability.experiments.logit_lens import LogitLens
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.prompt_template import Template, get_template
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, LoadContext, Servable
from tests.contract.checks import experiments, servables, text
from tests.contract.checks import judges as judging
from tests.contract.checks.weights import disturbed
from tests.contract.toys import VISION_TOYS

Change = Callable[[Any], Any]


def same(thing: Any) -> Any:
    return thing


def changed(**values: Any) -> Change:
    return lambda one: one.model_copy(update=values)


def each(change: Change) -> Change:
    return lambda answers: [one if isinstance(one, FoveaError) else change(one) for one in answers]


def wrong(name: str, base: Any, ask: Change = same, tell: Change = same, under: Change = same, **parts: Any) -> Any:
    """A class that does one thing otherwise than its base: changes what is asked, told or the run, or has own parts."""

    def predict(self: Any, batch: Sequence[Any], run: CallContext) -> Any:
        return tell(base.predict(self, ask(batch), under(run)))

    facts = {"card": base.card.model_copy(update={"name": name}), "__doc__": base.__doc__, "__module__": __name__}
    return type(base)(name, (base,), {"predict": predict, **facts, **parts})


_FAMILIES = ("family-actions", "family-segmenter", "family-other-segmenter")
_Actions, _Segmenter, _OtherSegmenter = (VISION_TOYS[name] for name in _FAMILIES)


class OtherGraph(_Actions):
    """Its Card is right, and its engine runs another network."""

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        run = found.engine.run
        found.engine.run = lambda feeds: {name: array * 0.9 for name, array in run(feeds).items()}
        return found


class OtherModelAnswers(_Segmenter):
    """Shows its own engine and lets another model answer."""

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        found.other = _OtherSegmenter.load(place)
        return found

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return each(changed(model=self.card.name))(self.other.predict(batch, run))


class OtherWeightsSpeak(TitansMAG):
    """Speaks with weights that are not its Card's."""

    @classmethod
    def make_adapter(cls, loaded: Any, threads: int) -> Any:
        return super().make_adapter(replace(loaded, net=disturbed(loaded.net, 0.3)), threads)


class OneSession(TitansMAG):
    """All requests share one session."""

    @classmethod
    def make_adapter(cls, loaded: Any, threads: int) -> Any:
        only = loaded.net.session(1)
        loaded.net.session = lambda _batch=1: only
        return super().make_adapter(loaded, threads)


class RemembersOptions(_Segmenter):
    """A threshold that was asked for once stays."""

    threshold = 0.5

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        self.threshold = max(self.threshold, *(one.threshold for one in batch))
        return super().predict([one.model_copy(update={"threshold": self.threshold}) for one in batch], run)


def segments(name: str, **otherwise: Any) -> type[Servable[Any, Any]]:
    return wrong(name, _Segmenter, **otherwise)


def _speak_on(self: Any, request: BaseModel, _run: CallContext) -> AsyncGenerator[BaseModel, None]:
    return TitansMAG.stream(self, request, CallContext())


def _check_once(run: CallContext) -> CallContext:
    run.check()
    return CallContext()


def _fail_all(answers: list[Any]) -> list[Any]:
    bad = next((answer for answer in answers if isinstance(answer, FoveaError)), None)
    return [bad] * len(answers) if bad else answers


_invalid = each(changed(area_percent=float("nan"), components=[{"box": "here"}]))

WRONG_SERVABLES: Mapping[type[Servable[Any, Any]], Sequence[Any]] = {
    segments("OtherFile", weights="family-other-segmenter"): [servables.check_card_names_the_weights_that_are_served],
    OtherGraph: [servables.check_engine_computes_the_cards_network],
    OtherModelAnswers: [servables.check_answer_is_the_cards_networks],
    OtherWeightsSpeak: [
        text.check_log_probabilities_are_the_cards_networks, servables.check_networks_hold_the_named_weights,
    ],
    OneSession: [servables.check_same_request_has_the_same_answer, servables.check_batch_equals_its_singles],
    wrong("SpeaksOn", TitansMAG, stream=_speak_on): [servables.check_cancelled_run_stops],
    segments("OneForAll", ask=lambda batch: [batch[0]] * len(batch)): [servables.check_batch_equals_its_singles],
    segments("IgnoresOneOption", ask=each(changed(min_area=0))): [servables.check_every_option_matters],
    segments("ForgetsParts", tell=each(changed(rle=None))): [servables.check_include_adds_what_it_names],
    RemembersOptions: [servables.check_nothing_of_earlier_requests_remains],
    segments("DoesNotValidate", tell=_invalid): [servables.check_example_is_answered_validly],
    segments("LooksOnlyBefore", under=_check_once): [servables.check_cancelled_run_stops],
    segments("BadPictureFailsAll", tell=_fail_all): [servables.check_bad_picture_costs_its_own_request_only],
}  # fmt: skip


def runs(name: str, base: type[Experiment[Any]], run: Callable[..., Report]) -> type[Experiment[Any]]:
    return wrong(name, base, route=name, run=run)


def _same_seed(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return HeadPatterns.run(self, spec.model_copy(update={"seed": 0}), subject, progress)


def _with(report: Report, number: float) -> Report:
    return report.model_copy(update={"scalars": report.scalars | {"told": Scalar(value=number)}})


def _draw_freely(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return _with(LogitLens.run(self, spec, subject, progress), float(np.random.default_rng().random()))


def _read_digest(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    return _with(LogitLens.run(self, spec, subject, progress), int(subject.weights_sha256[:8], 16) / 2**32)


def _study_own(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    with torch.no_grad():
        subject.model(subject.tensor([subject.encode(spec.text)]))
    return LogitLens.run(self, spec, self.models.get(TINY), progress)


def _run_twice(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    LogitLens.run(self, spec, subject, progress)
    return LogitLens.run(self, spec, subject, progress)


def _work_beforehand(self: Any, spec: Any, subject: StudiedModel, progress: Progress) -> Report:
    Deconstruction.run(self, spec, subject, Progress())
    return Deconstruction.run(self, spec, subject, progress)


class _WithoutText(Progress):
    """Cells whose content leaves out the text."""

    def __init__(self, inner: Progress) -> None:
        vars(self).update(vars(inner))

    def cell(self, content: Mapping[str, Any], work: Callable[[], Any], note: str = "") -> Any:
        return super().cell({key: value for key, value in content.items() if key != "ids"}, work, note)


def keeps(name: str, begin: Callable[..., Progress]) -> type[Experiment[Any]]:
    return wrong(name, Deconstruction, route=name, begin=begin)


def _no_cell(self: Any, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
    return Progress(run, cells=self.cost(spec, subject).cells)


def _without_text(self: Any, spec: Any, subject: StudiedModel, run: CallContext | None = None) -> Progress:
    return _WithoutText(Deconstruction.begin(self, spec, subject, run))


_goes_on = wrong("goes-on", Deconstruction, under=lambda _: CallContext(), route="goes-on")

WRONG_EXPERIMENTS: Mapping[type[Experiment[Any]], Sequence[Any]] = {
    runs("ignores-seed", HeadPatterns, _same_seed): [experiments.check_another_seed_has_another_report],
    runs("draws-freely", LogitLens, _draw_freely): [experiments.check_same_seed_has_the_same_report],
    keeps("does-not-resume", _no_cell): [
        experiments.check_killed_job_goes_on_where_it_was, experiments.check_cancelled_job_says_where_its_report_is,
    ],
    keeps("takes-other-cells", _without_text): [experiments.check_cells_of_other_specs_are_not_taken],
    runs("works-beforehand", Deconstruction, _work_beforehand): [
        experiments.check_killed_job_goes_on_where_it_was, experiments.check_estimate_is_what_a_run_takes,
    ],
    runs("studies-its-own", LogitLens, _study_own): [experiments.check_report_follows_from_the_model],
    runs("reads-the-digest", LogitLens, _read_digest): [experiments.check_report_follows_from_what_the_model_computes],
    _goes_on: [experiments.check_cancelled_job_says_where_its_report_is],
    runs("underestimates-itself", LogitLens, _run_twice): [experiments.check_estimate_is_what_a_run_takes],
}  # fmt: skip


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
            if pair.query not in (known := vars(self).setdefault("known", {})):
                known[pair.query] = super().verdict(pair, request, run)
            return known[pair.query]


class ForeignEvidence(PromptedGrade):
    """Shows the answer that it got for a query before."""

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        found = super().verdict(pair, request, run)
        return found.model_copy(update={"answer": vars(self).setdefault("first", found).answer})


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


def _first_options(batch: Sequence[JudgeIn]) -> list[JudgeIn]:
    return [batch[0].model_copy(update={"pairs": one.pairs}) for one in batch]


_backwards = each(lambda told: told.model_copy(update={"results": told.results[::-1]}))
_one_query = changed(query="a question")

WRONG_JUDGES: Mapping[type[Judge], Sequence[Any]] = {
    RemembersQueries: [judging.check_passage_and_query_are_asked_about, judging.check_nothing_is_kept_between_requests],
    ForeignEvidence: [judging.check_evidence_belongs_to_its_pair],
    IgnoresTemplate: [judging.check_template_is_used],
    judges("IgnoresPassages", pair=changed(passage="-")): [judging.check_passage_and_query_are_asked_about],
    judges("IgnoresQueries", QueryLikelihood, _one_query): [judging.check_passage_and_query_are_asked_about],
    judges("GradesToTen", verdict=_to_ten): [judging.check_grade_is_on_the_scale],
    judges("GuessesGrades", verdict=_zero_for_none): [judging.check_grade_is_on_the_scale],
    judges("IgnoresSeed", request=changed(seed=0)): [judging.check_seed_makes_verdicts_repeatable],
    judges("NeverSeeded", request=changed(seed=None)): [judging.check_seed_makes_verdicts_repeatable],
    judges("NamesNoModel", request=changed(llm=None)): [judging.check_options_count],
    wrong("MixesPairs", PromptedGrade, tell=_backwards): [judging.check_list_of_pairs_equals_its_singles],
    wrong("FirstRequestsOptions", PromptedGrade, _first_options): [judging.check_batch_of_requests_equals_its_singles],
    wrong("AsksOn", PromptedGrade, under=lambda _: CallContext()): [judging.check_cancelled_request_stops_asking],
}
