"""Any action-detection network as a Servable: features of a video in, segments out. A model file adds a card.

Knows features, engines and the wire type; the networks are in `models`, drawing in `draw_timeline`.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel

from services.detection.temporal.npy_inputs import read_matrices
from services.detection.temporal.plot import draw_timeline
from services.detection.temporal.segments import classify_proposals, score_proposals, soft_nms
from shared.api.actions import ActionsIn, ActionsOut, ActionTimes, Curves, Proposal
from shared.api.tensors import TensorSpec
from shared.errors import FoveaError, InvalidOption
from shared.export.artifacts import ExportedForms, open_engine_with_card
from shared.registry import CallContext, Card, Engine, LoadContext, Servable
from shared.registry.weights import Weights, find_weights, read_weights
from shared.telemetry import stage
from shared.vision.draw import encode

__all__ = ["ActionDetector", "resample"]


@dataclass(slots=True)
class _Video:
    """A request on its way through: tensors as the network takes them, and what the answer should say."""

    request: ActionsIn
    tensors: list[np.ndarray]
    classes: np.ndarray | None
    duration: float
    notes: list[str]
    times: ActionTimes = field(default_factory=ActionTimes)


class ActionDetector(Servable[ActionsIn, ActionsOut]):
    """Finds segments with one network.

    Class attributes:
        weights: Name of its weights, `<weights>.safetensors` beside its manifest.
        folder: Where the weights that come with the package are.
        attends: Whether it takes class semantics beside the features.
    """

    In: ClassVar[type[BaseModel]] = ActionsIn
    Out: ClassVar[type[BaseModel]] = ActionsOut
    weights: ClassVar[str]
    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    attends: ClassVar[bool]

    def __init__(self, card: Card, engine: Engine) -> None:
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights
        self.engine: Engine = engine

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Verify the weights and open the engine that `place` wants.

        Raises:
            NotReady: Weights are missing or not what their manifest says, or the engine can't run here.
        """
        weights = read_weights(find_weights(cls.weights, cls.folder, place.weights))
        artefacts = _artefacts(weights, place.cache, attends=cls.attends)
        engine, card = open_engine_with_card(cls.card, artefacts, place)
        return cls(card, engine)

    def predict(self, batch: Sequence[ActionsIn], run: CallContext) -> list[ActionsOut | FoveaError]:
        """Segments of videos, in order; one that can't be read is answered by its error."""
        with stage("pre"):
            videos = [self._read(request, run) for request in batch]
        whole = [video for video in videos if isinstance(video, _Video)]
        maps = iter(self._infer(whole, run))
        with stage("post"):
            return [self._answer(video, next(maps)) if isinstance(video, _Video) else video for video in videos]

    def render(self, request: ActionsIn, answer: ActionsOut, media_type: str) -> bytes | None:
        """The proposals as CSV, or a picture: time line with start, end and segments above the confidence map."""
        if media_type == "text/csv":
            return _csv(answer)
        if media_type != "image/png":
            return None
        if answer.curves is None or answer.confidence is None:
            wanted = request.model_copy(update={"include": ("curves", "confidence")})
            (answered,) = self.predict([wanted], CallContext())
            if isinstance(answered, FoveaError):
                raise answered
            answer = answered
        return encode(draw_timeline(answer))

    @classmethod
    def media_types(cls) -> tuple[str, ...]:
        """A picture, and a table."""
        return ("image/png", "text/csv")

    def example(self) -> ActionsIn:
        """Features of a made-up video with two segments, and the Card's options."""
        _, channels, length = self.engine.inputs[0].shape
        rng, inside = np.random.default_rng(3), np.zeros(length)
        inside[length // 8 : length // 3] = inside[length // 2 : 4 * length // 5] = 1
        direction = rng.standard_normal(channels)
        features = 0.5 * rng.standard_normal((channels, length)) + 0.3 * direction[:, None] * inside
        more = {}
        if self.attends:
            semantics = np.zeros((self.engine.inputs[1].shape[1], length))
            semantics[0] = 0.5 * inside
            more["semantics"] = tuple(map(tuple, semantics.tolist()))
        rows = tuple(map(tuple, features.round(3).tolist()))
        return ActionsIn(features=rows, **more, **self.card.example)

    def _read(self, request: ActionsIn, run: CallContext) -> _Video | FoveaError:
        run.check()
        begun = time.perf_counter()
        try:
            video = self._video(request)
        except FoveaError as error:
            return error
        video.times.decode = _ms(time.perf_counter() - begun)
        return video

    def _video(self, request: ActionsIn) -> _Video:
        held = read_matrices(request.features, "features")
        for name in ("semantics", "class_scores"):
            if (given := getattr(request, name)) is not None:
                held |= read_matrices(given, name)
        features = self._matrix(held, "features", self.engine.inputs[0])
        tensors, steps, length = [features], features.shape[1], int(self.engine.inputs[0].shape[2])
        if self.attends:
            tensors.append(self._matrix(held, "semantics", self.engine.inputs[1]))
            if tensors[1].shape[1] != steps:
                detail = f"semantics have {tensors[1].shape[1]} steps, features {steps}."
                raise InvalidOption(detail, hint="Both must cover the same time.", field="semantics")
        duration, notes = _duration(request, steps)
        if steps != length:
            notes.append(f"{steps} steps resampled to the {length} cells of the network.")
        tensors = [resample(tensor, length) for tensor in tensors]
        return _Video(request, tensors, _classes(held, request, length), duration, notes)

    def _matrix(self, held: dict[str, np.ndarray], name: str, spec: TensorSpec) -> np.ndarray:
        """Rows that the network has channels for."""
        if (matrix := held.get(name)) is None:
            detail = f"{self.card.name} needs {name}."
            raise InvalidOption(detail, hint=f"Send `{name}`: {spec.shape[1]} channels by time.", field=name)
        if matrix.ndim != 2 or matrix.shape[0] != spec.shape[1]:
            turned = " Its axes seem to be swapped." if matrix.ndim == 2 and matrix.shape[1] == spec.shape[1] else ""
            detail = f"{name} must be {spec.shape[1]} channels by time, not {matrix.shape}.{turned}"
            raise InvalidOption(detail, hint="This network was made for other features.", field=name)
        return matrix

    def _infer(self, videos: Sequence[_Video], run: CallContext) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Confidence (2, s, e), start (t,) and end (t,) of all videos, in one run of the engine."""
        if not videos:
            return []
        run.check()
        begun = time.perf_counter()
        feeds = {
            spec.name: np.stack([video.tensors[place] for video in videos])
            for place, spec in enumerate(self.engine.inputs)
        }
        with stage("run"):
            found = self.engine.run(feeds)
        for video in videos:
            video.times.infer = _ms(time.perf_counter() - begun)
        return list(zip(*(found[spec.name] for spec in self.engine.outputs), strict=True))

    def _answer(self, video: _Video, maps: tuple[np.ndarray, np.ndarray, np.ndarray]) -> ActionsOut:
        begun, request = time.perf_counter(), video.request
        confidence, start, end = maps
        kept = soft_nms(*score_proposals(confidence, start, end), request.alpha, request.low, request.high)
        found = _listed(kept, video)
        more: dict[str, Any] = {}
        if "curves" in request.include:
            more["curves"] = Curves(start=_rounded(start), end=_rounded(end))
        if "confidence" in request.include:
            more["confidence"] = [_rounded(row) for row in np.triu(confidence[0] * confidence[1])]
        if "activitynet" in request.include:
            more["activitynet"] = _activitynet(found, request.video, self.card.name)
        video.times.post = _ms(time.perf_counter() - begun)
        return ActionsOut(
            model=self.card.name,
            version=self.card.version,
            engine=self.engine.name,
            duration=video.duration,
            cells=len(start),
            proposals=found,
            times=video.times,
            notes=video.notes,
            **more,
        )


def resample(matrix: np.ndarray, length: int) -> np.ndarray:
    """A matrix (c, t) over `length` equal cells: the mean of what a cell covers; fewer steps are joined by lines."""
    steps = matrix.shape[1]
    if steps == length:
        return matrix
    if steps < length:
        places = np.clip((np.arange(length) + 0.5) * steps / length - 0.5, 0, steps - 1)
        lower = np.floor(places).astype(int)
        share = (places - lower).astype(np.float32)
        return np.asarray(matrix[:, lower] * (1 - share) + matrix[:, np.minimum(lower + 1, steps - 1)] * share)
    sums = np.concatenate((np.zeros((len(matrix), 1)), matrix.cumsum(1, dtype=np.float64)), axis=1)
    edges = np.arange(length + 1) * steps / length
    lower = np.minimum(edges.astype(int), steps - 1)
    reached = sums[:, lower] + (edges - lower) * matrix[:, lower]
    return np.asarray(np.diff(reached, axis=1) * length / steps, np.float32)


def _duration(request: ActionsIn, steps: int) -> tuple[float, list[str]]:
    if request.duration is not None and request.fps is not None:
        raise InvalidOption("duration and fps were both given.", hint="Give one of them.", field="fps")
    if request.duration is not None:
        return request.duration, []
    if request.fps is not None:
        return steps / request.fps, []
    return float(steps), ["Neither duration nor fps was given: each step of the features counts as one second."]


def _classes(held: dict[str, np.ndarray], request: ActionsIn, length: int) -> np.ndarray | None:
    """Class scores (s,) of the video or (s, t) by cell."""
    scores = held.get("class_scores")
    if scores is None:
        return None
    if request.class_names and len(request.class_names) != len(scores):
        detail = f"{len(request.class_names)} class names were given for {len(scores)} class scores."
        raise InvalidOption(detail, field="class_names")
    return resample(scores, length) if scores.ndim == 2 else scores


def _listed(kept: tuple[np.ndarray, np.ndarray, np.ndarray], video: _Video) -> list[Proposal]:
    """The best proposals in seconds, with their classes where the recogniser's scores are known."""
    request, seconds, names = video.request, video.duration, video.request.class_names
    if video.classes is None:
        rows = [(a, b, None, s) for a, b, s in zip(*kept, strict=True)]
    else:
        rows = list(zip(*classify_proposals(*kept, video.classes, best=request.labels), strict=True))
    return [
        Proposal(
            start=round(float(start) * seconds, 4),
            end=round(float(end) * seconds, 4),
            score=round(float(score), 6),
            label=None if label is None else names[label] if names else str(label),
            class_id=None if label is None else int(label),
        )
        for start, end, label, score in rows
        if score >= request.min_score
    ][: request.max_proposals]


def _activitynet(found: list[Proposal], video: str, model: str) -> dict[str, Any]:
    """The form that the ActivityNet evaluation reads."""
    rows = [{"label": p.label or "action", "score": p.score, "segment": [p.start, p.end]} for p in found]
    return {"version": "VERSION 1.3", "results": {video: rows}, "external_data": {"used": True, "details": model}}


def _csv(answer: ActionsOut) -> bytes:
    """One row a proposal."""
    page = io.StringIO()
    writer = csv.writer(page)
    writer.writerow(["start", "end", "score", "label"])
    writer.writerows([p.start, p.end, p.score, p.label or ""] for p in answer.proposals)
    return page.getvalue().encode()


def _artefacts(weights: Weights, cache: Path, *, attends: bool) -> ExportedForms:
    config = weights.manifest.network.config
    t = config.get("length", 100)
    given = [TensorSpec(name="features", datatype="FP32", shape=(-1, config.get("features", 400), t))]
    if attends:
        given.append(TensorSpec(name="semantics", datatype="FP32", shape=(-1, config.get("semantics", 200), t)))
    wanted = tuple(
        TensorSpec(name=name, datatype="FP32", shape=shape)
        for name, shape in (("confidence", (-1, 2, t, t)), ("start", (-1, t)), ("end", (-1, t)))
    )
    return ExportedForms(weights, cache, tuple(given), wanted, tag="v1", call="maps")


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
