"""Actions on the wire: features of a video in, segments of time out.

Times are seconds. A video is what the caller's own backbone made of it: channels by steps of time, all steps equally
long. No backbone is served here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from fovea.api.arrays import ArrayBytes
from fovea.api.image import Drawable, split_commas

Form = Literal["curves", "confidence", "activitynet"]
"""Parts of an answer besides its proposals."""

LONGEST_S = 1e6
"""Longest video."""


class ActionsIn(BaseModel, extra="forbid", frozen=True):
    """A video as features, and how to search it."""

    features: ArrayBytes = Field(
        description="Channels by time: `.npy`, rows of numbers, or `.npz` with arrays `features` and, if wanted, "
        "`semantics` and `class_scores`."
    )
    model: str | None = Field(None, description="Which model; left out, the default one.")
    semantics: ArrayBytes | None = Field(
        None, description="Class semantics by time (a recogniser's features or posteriors), for models that attend."
    )
    class_scores: ArrayBytes | tuple[FiniteFloat, ...] | None = Field(
        None, description="A recogniser's score of each class, for the video or by time; proposals then have labels."
    )
    class_names: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        (), description="Names of the classes, in the order of class_scores."
    )
    duration: float | None = Field(None, gt=0, le=LONGEST_S, description="Length of the video, seconds.")
    fps: float | None = Field(
        None, gt=0, le=1e6, description="Steps of the features per second, in place of the duration."
    )
    alpha: float = Field(0.4, gt=0, le=100, description="Soft suppression: a larger one suppresses less.")
    low: float = Field(0.5, ge=0, le=1, description="Overlap from which a very short segment suppresses others.")
    high: float = Field(0.9, ge=0, le=1, description="The same for a segment as long as the video.")
    max_proposals: int = Field(100, ge=1, le=1000, description="Most proposals, best first.")
    min_score: float = Field(0.0, ge=0, le=1, description="Proposals below this are left out.")
    labels: int = Field(1, ge=1, le=20, description="Classes per proposal, where class scores are given.")
    video: str = Field("video", max_length=200, description="Its name in the ActivityNet form.")
    include: Annotated[tuple[Form, ...], BeforeValidator(split_commas)] = Field(
        (), description="curves (start and end by time), confidence (map), activitynet (the challenge's JSON form)."
    )


class Proposal(BaseModel):
    """One segment in which something may happen."""

    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    score: float
    label: str | None = Field(None, description="Name of its class, or its number where no names were given.")
    class_id: int | None = None


class Curves(BaseModel):
    """Probability of a start and of an end in each cell of the video."""

    start: list[float]
    end: list[float]


class ActionTimes(BaseModel):
    """Where the time went, in milliseconds; `infer` is that of the whole micro-batch."""

    decode: float = 0.0
    infer: float = 0.0
    post: float = 0.0


class ActionsOut(Drawable):
    """Findings in one video."""

    model: str
    version: str
    engine: str = Field(description="Engine that ran the network: onnx, torch, tensorrt or triton.")
    duration: float = Field(description="Seconds.")
    cells: int = Field(description="Equal cells into which the network divides the video.")
    proposals: list[Proposal] = Field(description="Best first.")
    curves: Curves | None = None
    confidence: list[list[float]] | None = Field(
        None, description="Confidence by start cell (row) and end cell (column): classification times regression."
    )
    activitynet: dict[str, Any] | None = Field(None, description="version, results by video, external_data.")
    times: ActionTimes
    notes: list[str] = Field(default_factory=list, description="How the features were resampled, and what was assumed.")
