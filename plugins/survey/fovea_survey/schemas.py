"""Surveys on the wire: what was seen where, and what follows for a road."""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, Field

from fovea.api.image import Words

Severity = Literal["low", "medium", "high"]

Link = Annotated[str, Field(max_length=500, pattern=r"^(https?://|#|[^:]*$)")]
"""A relative address, a fragment, or a URL; a map must not hold a link that runs a script."""


class SeenObject(BaseModel, extra="forbid"):
    """One detection of a photograph."""

    label: str = Field(max_length=200)
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float]
    size: float | None = Field(None, ge=0, le=1, description="The box's share of the picture; null where not known.")
    track: str | None = Field(None, max_length=100, description="The same damage in several frames of a film.")


class Observation(BaseModel, extra="forbid"):
    """A photograph or a frame: its place, its time and what was found in it."""

    name: str = Field(max_length=500)
    latitude: float | None = Field(None, ge=-90, le=90, allow_inf_nan=False)
    longitude: float | None = Field(None, ge=-180, le=180, allow_inf_nan=False)
    time: dt.datetime | None = None
    detections: list[SeenObject] = Field([], max_length=3000)
    problem: str | None = Field(None, description="Why it could not be searched.")
    place_problem: str | None = Field(None, max_length=500, description="Why it has no place.")
    picture: Link | None = Field(
        None, description="Link to the picture with its boxes; map, GeoJSON and CSV repeat it."
    )
    boxed: Base64Bytes | None = Field(None, description="JPEG of the picture with its boxes, if asked for.")


class SurveyOptions(BaseModel, extra="forbid", frozen=True):
    """How to search, and how to count."""

    model: str | None = Field(None, description="Which detector; left out, the default one.")
    confidence: float | None = Field(
        None, ge=0, le=1, description="A detection scores more than this; left out, as the weights count best, or 0.25."
    )
    iou: float = Field(0.45, ge=0, le=1, description="Of two boxes that overlap by more than this, the better stays.")
    classes: Words[str] = Field((), description="Only these classes.")
    merge_m: float = Field(
        3.0,
        ge=0,
        le=1000,
        description="Detections of one class in different pictures within this distance count as one damage.",
    )
    max_gap_m: float = Field(500.0, gt=0, description="Two pictures further apart are not joined by a road.")
    segment_m: float = Field(100.0, ge=1, description="Length of the segments that are counted apart.")
    far_m: float = Field(
        10_000,
        ge=0,
        description="Pictures further than this from nearly all others are not placed, and reported; 0 places them.",
    )
    medium_size: float = Field(0.01, ge=0, le=1, description="Share of the picture from which damage is medium.")
    high_size: float = Field(0.05, ge=0, le=1, description="Share of the picture from which the severity is high.")
    boxed: bool = Field(False, description="Add a JPEG with its boxes to each picture that shows damage.")
    route: bool = Field(True, description="Plan an inspection route through the damage.")
    every: int = Field(10, ge=1, le=1000, description="Search every N-th frame of a film; others only move the boxes.")
    fps: float | None = Field(
        None, gt=0, le=1000, description="Frames per second of a film; left out, its frames' own times, or else 30."
    )
    start: dt.datetime | None = Field(None, description="When a film starts; left out, the track's first point.")
    zone: str | None = Field(
        None,
        pattern=r"^[+-](0[0-9]|1[0-4]):[0-5][0-9]$",
        description="Offset of clocks of cameras that state none, such as +02:00; a track places by it.",
    )


class SurveyIn(SurveyOptions):
    """Observations of earlier answers, to be counted together."""

    observations: list[Observation] = Field(min_length=1, max_length=100_000)


class FoundDamage(BaseModel):
    """One damage: what one or several pictures show of it."""

    label: str
    score: float = Field(description="The best.")
    pictures: list[str] = Field(description="Names, the best first.")
    time: dt.datetime | None
    size: float | None = Field(None, description="Its share of the picture where it looks largest.")
    severity: Severity | None = Field(None, description="By size: how large it looks, not how large it is.")
    picture: str | None = Field(None, description="Link to the picture with its boxes.")


class DamagePoint(FoundDamage):
    """Damage at a place."""

    latitude: float
    longitude: float


class UnplacedDamage(FoundDamage):
    """Damage that was found in a picture without a place."""

    reason: str = Field(description="Why it is not placed.")


class RoadSegment(BaseModel):
    """A stretch of the driven road."""

    start_m: float
    end_m: float
    line: list[tuple[float, float]] = Field(description="Longitude, latitude.")
    damages: int
    per_km: float


class InspectionRoute(BaseModel):
    """The shortest closed tour that was found through all damage, straight from one to the next."""

    length_m: float
    lower_bound_m: float = Field(description="No tour is shorter than this.")
    certified: bool
    order: list[int] = Field(description="Places in `damages`.")


class SurveyOut(BaseModel):
    """A survey."""

    model: str | None
    pictures: int
    without_place: list[str]
    place_problems: list[str] = Field(description="Pictures without a place or far from all others, and why.")
    failed: list[str]
    damages: list[DamagePoint]
    counts: dict[str, int] = Field(description="Damage with a place, by class.")
    not_placed: list[UnplacedDamage] = Field(description="Damage found in pictures without a place.")
    counts_not_placed: dict[str, int]
    length_km: float = Field(description="Of the road between pictures in order of time, without gaps.")
    per_km: float | None = Field(description="Damage per kilometre; null without a length.")
    per_km_by_class: dict[str, float]
    segments: list[RoadSegment]
    route: InspectionRoute | None
    observations: list[Observation] = Field(description="To be sent again together with others.")
    geojson: dict[str, Any] = Field(
        description="RFC 7946: damage as points, or without a geometry; segments and route."
    )
    notes: list[str] = []
