"""ActionDetector: serves temporal action detection, features of a video in, segments out. A model file adds a card.

Knows features and the wire type; the networks are in `models`, drawing in `segments.plot`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from fovea.api.csv_form import format_csv
from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from fovea_actions.schema import LONGEST_S, ActionsIn, ActionsOut, Curves, Proposal
from fovea_actions.segments.npy_inputs import read_matrices
from fovea_actions.segments.plot import draw_timeline
from fovea_actions.segments.proposals import classify_proposals, score_proposals, soft_nms
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext
from shared.registry.weights import Weights
from shared.vision.draw import encode
from shared.vision.servable import DataConfig, Stopwatch, VisionItem, VisionServable


@dataclass(slots=True, kw_only=True)
class _Video(VisionItem[ActionsIn]):
    """Features of a video of this duration (seconds), and class scores of a recogniser where they were sent."""

    classes: np.ndarray | None
    duration: float


class ActionDetector(VisionServable[ActionsIn, ActionsOut, _Video]):
    """Finds segments with one network.

    Class attributes:
        takes_semantics: Whether it takes class semantics next to the features.
    """

    In: ClassVar[type[BaseModel]] = ActionsIn
    Out: ClassVar[type[BaseModel]] = ActionsOut
    folder: ClassVar[Path] = Path(__file__).parent / "weights"
    forms: ClassVar[tuple[str, ...]] = ("image/png", "text/csv")
    takes_semantics: ClassVar[bool]

    @classmethod
    def artifacts(cls, weights: Weights, config: DataConfig, cache: Path) -> ExportedForms:
        sizes = weights.manifest.network.config
        t = sizes.get("length", 100)
        given = [TensorSpec(name="features", datatype="FP32", shape=(-1, sizes.get("features", 400), t))]
        if cls.takes_semantics:
            given.append(TensorSpec(name="semantics", datatype="FP32", shape=(-1, sizes.get("semantics", 200), t)))
        wanted = tuple(
            TensorSpec(name=name, datatype="FP32", shape=shape)
            for name, shape in (("confidence", (-1, 2, t, t)), ("start", (-1, t)), ("end", (-1, t)))
        )
        return ExportedForms(weights, cache, tuple(given), wanted, tag="v1", call="maps")

    def example(self) -> ActionsIn:
        _, channels, length = self.engine.inputs[0].shape
        rng, inside = np.random.default_rng(3), np.zeros(length)
        inside[length // 8 : length // 3] = inside[length // 2 : 4 * length // 5] = 1
        direction = rng.standard_normal(channels)
        features = 0.5 * rng.standard_normal((channels, length)) + 0.3 * direction[:, None] * inside
        more = {}
        if self.takes_semantics:
            semantics = np.zeros((self.engine.inputs[1].shape[1], length))
            semantics[0] = 0.5 * inside
            more["semantics"] = tuple(map(tuple, semantics.tolist()))
        rows = tuple(map(tuple, features.round(3).tolist()))
        return ActionsIn(features=rows, **more, **self.card.example)

    def read(self, request: ActionsIn, watch: Stopwatch, run: CallContext) -> _Video:
        matrices = read_matrices(request.features, "features")
        for name in ("semantics", "class_scores"):
            if (given := getattr(request, name)) is not None:
                matrices |= read_matrices(given, name)
        features = self._matrix(matrices, "features", self.engine.inputs[0])
        inputs, steps, length = [features], features.shape[1], int(self.engine.inputs[0].shape[2])
        if self.takes_semantics:
            inputs.append(self._matrix(matrices, "semantics", self.engine.inputs[1]))
            if inputs[1].shape[1] != steps:
                detail = f"semantics have {inputs[1].shape[1]} steps, features {steps}."
                raise InvalidOption(detail, hint="Both must cover the same time.", field="semantics")
        duration, notes = _duration(request, steps)
        if steps != length:
            notes.append(f"{steps} steps resampled to the {length} cells of the network.")
        if not self.takes_semantics and "semantics" in matrices:
            notes.append(f"{self.card.name} does not look at semantics.")
        if request.class_names and "class_scores" not in matrices:
            notes.append("class_names name nothing: class_scores were not sent, so proposals have no labels.")
        resampled = tuple(resample(matrix, length) for matrix in inputs)
        classes = _classes(matrices, request, length)
        watch.lap("decode")
        return _Video(request=request, watch=watch, inputs=resampled, notes=notes, classes=classes, duration=duration)

    def _matrix(self, matrices: dict[str, np.ndarray], name: str, spec: TensorSpec) -> np.ndarray:
        """Rows that the network has channels for."""
        if (matrix := matrices.get(name)) is None:
            detail = f"{self.card.name} needs {name}."
            raise InvalidOption(detail, hint=f"Send `{name}`: {spec.shape[1]} channels by time.", field=name)
        if matrix.ndim != 2 or matrix.shape[0] != spec.shape[1]:
            turned = " Its axes seem to be swapped." if matrix.ndim == 2 and matrix.shape[1] == spec.shape[1] else ""
            detail = f"{name} must be {spec.shape[1]} channels by time, not {matrix.shape}.{turned}"
            raise InvalidOption(detail, hint="This network was made for other features.", field=name)
        return matrix

    def postprocess(self, item: _Video) -> ActionsOut:
        (confidence, start, end), request = item.outputs, item.request
        if not all(np.isfinite(each).all() for each in item.outputs):
            detail = f"{self.card.name} makes no numbers of these features: they are too large."
            raise InvalidOption(detail, hint="Send them as the backbone made them.", field="features")
        kept = soft_nms(*score_proposals(confidence, start, end), request.alpha, request.low, request.high)
        found = _list_proposals(kept, item)
        more: dict[str, Any] = {}
        more |= {name: value for name, value in _signals(item).items() if name in request.include}
        if "activitynet" in request.include:
            more["activitynet"] = _activitynet(found, request.video, self.card.name)
        return ActionsOut(**self.facts(item), duration=item.duration, cells=len(start), proposals=found, **more)

    def draw(self, item: _Video, answer: ActionsOut, media_type: str) -> bytes | None:
        if media_type == "text/csv":
            return _csv(answer)
        return encode(draw_timeline(answer.model_copy(update=_signals(item))))


def _signals(item: _Video) -> dict[str, Any]:
    """Output of the network, as an answer shows it: the curves, and the confidence of each pair of cells."""
    confidence, start, end = item.outputs
    return {
        "curves": Curves(start=_rounded(start), end=_rounded(end)),
        "confidence": [_rounded(row) for row in np.triu(confidence[0] * confidence[1])],
    }


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
        if (found := steps / request.fps) > LONGEST_S:
            detail = f"{steps} steps at fps={request.fps:g} are longer than {LONGEST_S:,.0f} s."
            raise InvalidOption(detail, hint="fps is steps per second.", field="fps")
        return found, []
    return float(steps), ["Neither duration nor fps was given: each step of the features counts as one second."]


def _classes(matrices: dict[str, np.ndarray], request: ActionsIn, length: int) -> np.ndarray | None:
    """Class scores (s,) of the video or (s, t) by cell."""
    scores = matrices.get("class_scores")
    if scores is None:
        return None
    if request.class_names and len(request.class_names) != len(scores):
        detail = f"{len(request.class_names)} class names were given for {len(scores)} class scores."
        raise InvalidOption(detail, field="class_names")
    if scores.min() < 0:
        raise InvalidOption("class_scores are below 0.", hint="Send probabilities, not logits.", field="class_scores")
    return resample(scores, length) if scores.ndim == 2 else scores


def _list_proposals(kept: tuple[np.ndarray, np.ndarray, np.ndarray], video: _Video) -> list[Proposal]:
    """The best proposals in seconds, with their classes where the recogniser's scores are known.

    `min_score` is compared with scores as they are shown: asking for a score that was seen gives its proposal again.
    """
    request, seconds, names = video.request, video.duration, video.request.class_names
    if video.classes is None:
        rows = [(a, b, None, s) for a, b, s in zip(*kept, strict=True)]
    else:
        rows = list(zip(*classify_proposals(*kept, video.classes, best=request.labels), strict=True))
    found = [
        Proposal(
            start=round(float(start) * seconds, 4),
            end=round(float(end) * seconds, 4),
            score=round(float(score), 6),
            label=None if label is None else names[label] if names else str(label),
            class_id=None if label is None else int(label),
        )
        for start, end, label, score in rows
    ]
    return [proposal for proposal in found if proposal.score >= request.min_score][: request.max_proposals]


def _activitynet(found: list[Proposal], video: str, model: str) -> dict[str, Any]:
    """The form that the ActivityNet evaluation reads."""
    rows = [{"label": p.label or "action", "score": p.score, "segment": [p.start, p.end]} for p in found]
    return {"version": "VERSION 1.3", "results": {video: rows}, "external_data": {"used": True, "details": model}}


def _csv(answer: ActionsOut) -> bytes:
    """One row a proposal."""
    rows = ([p.start, p.end, p.score, p.label or ""] for p in answer.proposals)
    return format_csv([["start", "end", "score", "label"], *rows]).encode()


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
