"""Servables that are wrong, and for each the checks that must refuse it; and some that are new and right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from pydantic import BaseModel

from services.detection.models.planner import FoveaPlanner
from services.llm_longctx.models.fovea_titans import TitansMAG
from shared.api.mask import SegmentIn, SegmentOut
from shared.errors import FoveaError
from shared.registry import CallContext, Card, LoadContext, Servable
from tests.contract.checks import servables as checks
from tests.contract.checks import text
from tests.contract.checks.weights import disturbed
from tests.contract.toys import VISION_TOYS

__all__ = ["RIGHT_SERVABLES", "WRONG_SERVABLES"]


def _named(card: Card, name: str) -> Card:
    return card.model_copy(update={"name": name})


_Actions, _Classifier, _Segmenter, _OtherSegmenter = (
    VISION_TOYS[f"family-{name}"] for name in ("actions", "classifier", "segmenter", "other-segmenter")
)


class OtherFile(_Segmenter):
    """Loads the weights of another model than its Card names."""

    card = _named(_Segmenter.card, "other-file")
    weights = "family-other-segmenter"


class OtherGraph(_Actions):
    """Its Card is right, and its engine runs another network."""

    card = _named(_Actions.card, "other-graph")

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        _run = found.engine.run
        found.engine.run = lambda feeds: {name: array * 0.9 for name, array in _run(feeds).items()}  # type: ignore[method-assign]
        return found


class OtherModelAnswers(_Segmenter):
    """Shows its own engine and lets another model answer."""

    card = _named(_Segmenter.card, "other-model-answers")

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        found.other = _OtherSegmenter.load(place)
        return found

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        answers = self.other.predict(batch, run)
        return [a if isinstance(a, FoveaError) else a.model_copy(update={"model": self.card.name}) for a in answers]


class NoisyPlanner(FoveaPlanner):
    """Its networks are not those whose digests it names."""

    card = _named(FoveaPlanner.card, "noisy-planner")

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        for module in checks.modules_of(found):
            module.load_state_dict(disturbed(module, 0.01).state_dict())
        return found


class OtherWeightsSpeak(TitansMAG):
    """Speaks with weights that are not its Card's."""

    card = _named(TitansMAG.card, "fovea-titans-mag")

    @classmethod
    def make_adapter(cls, loaded: Any, threads: int) -> Any:
        return super().make_adapter(replace(loaded, net=disturbed(loaded.net, 0.3)), threads)


class OneSession(TitansMAG):
    """All requests share one session."""

    card = _named(TitansMAG.card, "fovea-titans-mag")

    @classmethod
    def make_adapter(cls, loaded: Any, threads: int) -> Any:
        only = loaded.net.session(1)
        loaded.net.session = lambda _batch=1: only
        return super().make_adapter(loaded, threads)


class AnswersLate(TitansMAG):
    """Streams the answer to the request before."""

    card = _named(TitansMAG.card, "fovea-titans-mag")
    before: BaseModel | None = None

    def stream(self, request: BaseModel, run: CallContext) -> Iterator[BaseModel]:
        asked, self.before = self.before or request, request
        return super().stream(asked, run)


class SpeaksOn(TitansMAG):
    """Goes on speaking when nobody listens."""

    card = _named(TitansMAG.card, "fovea-titans-mag")

    def stream(self, request: BaseModel, run: CallContext) -> Iterator[BaseModel]:
        return super().stream(request, CallContext())


class ReversesBatches(_Segmenter):
    """Answers in the wrong order."""

    card = _named(_Segmenter.card, "reverses-batches")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return super().predict(batch, run)[::-1]


class OneForAll(_Segmenter):
    """Answers a batch by its first request."""

    card = _named(_Segmenter.card, "one-for-all")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return super().predict([batch[0]] * len(batch), run)


class SharesOptions(_Segmenter):
    """Uses a batch's first options for all of it, and never by itself wrong ones."""

    card = _named(_Segmenter.card, "shares-options")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        lowest = 0.5 ** len(batch) * batch[0].threshold * 2
        return super().predict([one.model_copy(update={"threshold": lowest}) for one in batch], run)


class IgnoresOptions(_Segmenter):
    """Whatever is asked, the options are the default ones."""

    card = _named(_Segmenter.card, "ignores-options")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return super().predict([SegmentIn(image=one.image) for one in batch], run)


class IgnoresOneOption(_Segmenter):
    """Small components are never dropped."""

    card = _named(_Segmenter.card, "ignores-one-option")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return super().predict([one.model_copy(update={"min_area": 0}) for one in batch], run)


class ForgetsParts(_Segmenter):
    """Says nothing of a part that was to be included."""

    card = _named(_Segmenter.card, "forgets-parts")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        answers = super().predict(batch, run)
        return [a if isinstance(a, FoveaError) else a.model_copy(update={"rle": None}) for a in answers]


class RemembersOptions(_Segmenter):
    """A threshold that was asked for once stays."""

    card = _named(_Segmenter.card, "remembers-options")
    threshold = 0.5

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        self.threshold = max(self.threshold, *(one.threshold for one in batch))
        return super().predict([one.model_copy(update={"threshold": self.threshold}) for one in batch], run)


class CountsRequests(_Segmenter):
    """Its answers say how many there were."""

    card = _named(_Segmenter.card, "counts-requests")
    count = 0

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        self.count += 1
        answers = super().predict(batch, run)
        noted = {"notes": [f"request {self.count}"]}
        return [a if isinstance(a, FoveaError) else a.model_copy(update=noted) for a in answers]


class Smooths(_Actions):
    """Mixes each answer with the one before."""

    card = _named(_Actions.card, "smooths")
    last: Any = None

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        found = super().load(place)
        run = found.engine.run

        def smoothed(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            now = run(feeds)
            if found.last is not None and all(found.last[name].shape == now[name].shape for name in now):
                now = {name: 0.8 * array + 0.2 * found.last[name] for name, array in now.items()}
            found.last = now
            return now

        found.engine.run = smoothed  # type: ignore[method-assign]
        return found


class DoesNotValidate(_Segmenter):
    """Its answer is not of its own type's fields."""

    card = _named(_Segmenter.card, "does-not-validate")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        answers = super().predict(batch, run)
        wrong = {"area_percent": float("nan"), "components": [{"box": "here"}]}
        return [a if isinstance(a, FoveaError) else a.model_copy(update=wrong) for a in answers]


class IgnoresCancellation(_Segmenter):
    """Works on for nobody."""

    card = _named(_Segmenter.card, "ignores-cancellation")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        return super().predict(batch, CallContext())


class LooksOnlyBefore(_Segmenter):
    """Asks once whether to begin, and never again."""

    card = _named(_Segmenter.card, "looks-only-before")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        run.check()
        return super().predict(batch, CallContext())


class BadPictureFailsAll(_Segmenter):
    """One bad picture costs the batch."""

    card = _named(_Segmenter.card, "bad-picture-fails-all")

    def predict(self, batch: Sequence[SegmentIn], run: CallContext) -> list[SegmentOut | FoveaError]:
        answers = super().predict(batch, run)
        bad = next((answer for answer in answers if isinstance(answer, FoveaError)), None)
        return [bad] * len(batch) if bad else answers


class AlwaysTheSame(_Classifier):
    """Has one answer for every picture."""

    card = _named(_Classifier.card, "always-the-same")

    def predict(self, batch: Sequence[Any], run: CallContext) -> list[Any]:
        example = self.example()
        return super().predict([one.model_copy(update={"image": example.image}) for one in batch], run)


WRONG_SERVABLES: Mapping[type[Servable[Any, Any]], Sequence[Any]] = {
    OtherFile: [checks.check_card_names_the_weights_that_are_served],
    OtherGraph: [checks.check_engine_computes_the_cards_network],
    OtherModelAnswers: [checks.check_answer_is_the_cards_networks],
    NoisyPlanner: [checks.check_networks_hold_the_named_weights],
    OtherWeightsSpeak: [
        text.check_log_probabilities_are_the_cards_networks,
        checks.check_networks_hold_the_named_weights,
    ],
    OneSession: [checks.check_same_request_has_the_same_answer, checks.check_batch_equals_its_singles],
    AnswersLate: [checks.check_nothing_of_earlier_requests_remains, checks.check_batch_equals_its_singles],
    SpeaksOn: [checks.check_cancelled_run_stops],
    ReversesBatches: [checks.check_batch_equals_its_singles],
    OneForAll: [checks.check_batch_equals_its_singles],
    SharesOptions: [checks.check_batch_equals_its_singles],
    IgnoresOptions: [checks.check_every_option_matters],
    IgnoresOneOption: [checks.check_every_option_matters],
    ForgetsParts: [checks.check_include_adds_what_it_names],
    RemembersOptions: [checks.check_nothing_of_earlier_requests_remains],
    CountsRequests: [checks.check_same_request_has_the_same_answer],
    Smooths: [checks.check_nothing_of_earlier_requests_remains],
    DoesNotValidate: [checks.check_example_is_answered_validly],
    IgnoresCancellation: [checks.check_cancelled_run_stops],
    LooksOnlyBefore: [checks.check_cancelled_run_stops],
    BadPictureFailsAll: [checks.check_bad_picture_costs_its_own_request_only],
    AlwaysTheSame: [checks.check_answer_depends_on_what_is_asked_about],
}
"""Each mutant with the checks that must refuse it."""


class NewSegmenter(_OtherSegmenter):
    """A new name for weights that are there, honestly named."""

    card = _named(_OtherSegmenter.card, "new-segmenter")


RIGHT_SERVABLES: Sequence[type[Servable[Any, Any]]] = (NewSegmenter,)
"""New plug-ins that no check may refuse."""
