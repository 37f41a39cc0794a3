"""Servables that are wrong, and for each the checks that must refuse it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import BaseModel

from fovea.api.mask import SegmentIn, SegmentOut
from fovea.errors import FoveaError
from fovea_memory.models.fovea_titans import TitansMAG
from fovea_planning.models.planner import FoveaPlanner
from shared.registry import CallContext, LoadContext, Servable
from tests.contract.checks import servables as checks
from tests.contract.checks import text
from tests.contract.checks.weights import disturbed, modules_of
from tests.contract.mutants import changed, each, wrong
from tests.contract.toys import VISION_TOYS

_Actions, _Classifier, _Segmenter, _OtherSegmenter = (
    VISION_TOYS[f"family-{name}"] for name in ("actions", "classifier", "segmenter", "other-segmenter")
)


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


class NoisyPlanner(FoveaPlanner):
    """Its networks are not those whose digests it names."""

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        for module in modules_of(found):
            module.load_state_dict(disturbed(module, 0.01).state_dict())
        return found


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


class AnswersLate(TitansMAG):
    """Streams the answer to the request before."""

    before: BaseModel | None = None

    def stream(self, request: BaseModel, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        asked, self.before = self.before or request, request
        return super().stream(asked, run)


class RemembersOptions(_Segmenter):
    """A threshold that was asked for once stays."""

    threshold = 0.5

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        self.threshold = max(self.threshold, *(one.threshold for one in batch))
        return super().predict([one.model_copy(update={"threshold": self.threshold}) for one in batch], run)


class CountsRequests(_Segmenter):
    """Its answers say how many there were."""

    count = 0

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        self.count += 1
        return each(changed(notes=[f"request {self.count}"]))(super().predict(batch, run))


class AlwaysTheSame(_Classifier):
    """Has one answer for every picture."""

    def predict(self, batch: Sequence[Any], run: CallContext) -> list[Any]:
        image = self.example().image
        return super().predict([one.model_copy(update={"image": image}) for one in batch], run)


def segments(name: str, **otherwise: Any) -> type[Servable[Any, Any]]:
    return wrong(name, _Segmenter, **otherwise)


def _share_threshold(batch: Sequence[SegmentIn]) -> list[SegmentIn]:
    return [one.model_copy(update={"threshold": 0.5 ** len(batch) * batch[0].threshold * 2}) for one in batch]


def _speak_on(self: Any, request: BaseModel, _run: CallContext) -> AsyncGenerator[BaseModel, None]:
    return TitansMAG.stream(self, request, CallContext())


def _check_once(run: CallContext) -> CallContext:
    run.check()
    return CallContext()


def _fail_all(answers: list[Any]) -> list[Any]:
    bad = next((answer for answer in answers if isinstance(answer, FoveaError)), None)
    return [bad] * len(answers) if bad else answers


_any_area = each(changed(min_area=0))
_invalid = each(changed(area_percent=float("nan"), components=[{"box": "here"}]))

WRONG_SERVABLES: Mapping[type[Servable[Any, Any]], Sequence[Any]] = {
    segments("OtherFile", weights="family-other-segmenter"): [checks.check_card_names_the_weights_that_are_served],
    OtherGraph: [checks.check_engine_computes_the_cards_network],
    OtherModelAnswers: [checks.check_answer_is_the_cards_networks],
    NoisyPlanner: [checks.check_networks_hold_the_named_weights],
    OtherWeightsSpeak: [
        text.check_log_probabilities_are_the_cards_networks, checks.check_networks_hold_the_named_weights,
    ],
    OneSession: [checks.check_same_request_has_the_same_answer, checks.check_batch_equals_its_singles],
    AnswersLate: [checks.check_nothing_of_earlier_requests_remains, checks.check_batch_equals_its_singles],
    wrong("SpeaksOn", TitansMAG, stream=_speak_on): [checks.check_cancelled_run_stops],
    segments("OneForAll", ask=lambda batch: [batch[0]] * len(batch)): [checks.check_batch_equals_its_singles],
    segments("SharesOptions", ask=_share_threshold): [checks.check_batch_equals_its_singles],
    segments("IgnoresOneOption", ask=_any_area): [checks.check_every_option_matters],
    segments("ForgetsParts", tell=each(changed(rle=None))): [checks.check_include_adds_what_it_names],
    RemembersOptions: [checks.check_nothing_of_earlier_requests_remains],
    CountsRequests: [checks.check_same_request_has_the_same_answer],
    segments("DoesNotValidate", tell=_invalid): [checks.check_example_is_answered_validly],
    segments("LooksOnlyBefore", under=_check_once): [checks.check_cancelled_run_stops],
    segments("BadPictureFailsAll", tell=_fail_all): [checks.check_bad_picture_costs_its_own_request_only],
    AlwaysTheSame: [checks.check_answer_depends_on_what_is_asked_about],
}  # fmt: skip
"""Each mutant with the checks that must refuse it."""
