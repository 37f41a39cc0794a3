"""Counts of a survey: damage merged over pictures, per kilometre and per segment of the driven road, as GeoJSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.spatial import cKDTree

from fovea_survey.geodesy import distances, to_metres
from fovea_survey.schemas import DamagePoint, InspectionRoute, Observation, RoadSegment

FIGURES = 7
"""Decimals of degrees: a centimetre."""


def drive_in_order(observations: Sequence[Observation]) -> list[Observation]:
    """Pictures with a place, in order of time; those without a time behind the others, by name."""
    placed = [one for one in observations if one.latitude is not None and one.longitude is not None]
    return sorted(placed, key=lambda one: (one.time is None, one.time.timestamp() if one.time else 0.0, one.name))


def merge_damage(observations: Sequence[Observation], merge_m: float) -> list[DamagePoint]:
    """Damage of one class within `merge_m` metres in different pictures as one; of one picture each counts."""
    rows = [(one, seen) for one in observations for seen in one.detections]
    damages: list[DamagePoint] = []
    for label in dict.fromkeys(seen.label for _, seen in rows):
        own = [(one, seen) for one, seen in rows if seen.label == label]
        metres = to_metres([(one.latitude or 0.0, one.longitude or 0.0) for one, _ in own])
        near = cKDTree(metres).query_ball_point(metres, merge_m) if merge_m else [[place] for place in range(len(own))]
        used: set[int] = set()
        for place in sorted(range(len(own)), key=lambda place: -own[place][1].score):
            if place in used:
                continue
            group, pictures = [place], {own[place][0].name}
            for other in sorted(near[place], key=lambda other: -own[other][1].score):
                if other not in used and own[other][0].name not in pictures:
                    group.append(other)
                    pictures.add(own[other][0].name)
            used.update(group)
            one, seen = own[place]
            damages.append(
                DamagePoint(
                    label=label,
                    latitude=one.latitude or 0.0,
                    longitude=one.longitude or 0.0,
                    score=seen.score,
                    pictures=[own[member][0].name for member in group],
                    time=one.time,
                )
            )
    return damages


def measure_road(driven: Sequence[Observation], max_gap_m: float) -> list[float | None]:
    """Metres from the picture before, for each picture; None where a stretch of road begins."""
    steps = distances([(one.latitude or 0.0, one.longitude or 0.0) for one in driven])
    return [None, *(float(step) if step <= max_gap_m else None for step in steps)][: len(driven)]


def cut_segments(
    driven: Sequence[Observation], steps: Sequence[float | None], damages: Sequence[DamagePoint], segment_m: float
) -> list[RoadSegment]:
    """Segments of the driven road, about `segment_m` long, with the damage whose best picture lies in each."""
    at, stretch, positions = 0.0, 0, []
    for step in steps:
        if step is None:
            stretch += 1
        at += step or 0.0
        positions.append((stretch, int(at // segment_m), at))
    where = {one.name: place for place, one in enumerate(driven)}
    counts = Counter(positions[where[damage.pictures[0]]][:2] for damage in damages if damage.pictures[0] in where)
    found = []
    for key in dict.fromkeys(position[:2] for position in positions):
        places = [place for place, position in enumerate(positions) if position[:2] == key]
        last = places[-1]
        if last + 1 < len(driven) and steps[last + 1] is not None:
            places.append(last + 1)  # up to the first picture of the next segment
        length = positions[places[-1]][2] - positions[places[0]][2]
        line = [(round(driven[p].longitude or 0.0, FIGURES), round(driven[p].latitude or 0.0, FIGURES)) for p in places]
        found.append(
            RoadSegment(
                start_m=round(positions[places[0]][2], 2),
                end_m=round(positions[places[-1]][2], 2),
                line=line,
                damages=counts[key],
                per_km=round(counts[key] / length * 1000, 3) if length > 0 else 0.0,
            )
        )
    return found


def build_geojson(
    damages: Sequence[DamagePoint], segments: Sequence[RoadSegment], route: InspectionRoute | None
) -> dict[str, Any]:
    """A FeatureCollection (RFC 7946): longitude before latitude, WGS 84."""
    features = [
        _feature(
            "Point",
            _position(one),
            {
                "kind": "damage",
                "label": one.label,
                "score": round(one.score, 4),
                "pictures": one.pictures,
                "time": one.time.isoformat() if one.time else None,
            },
        )
        for one in damages
    ]
    features += [
        _feature("LineString", one.line, {"kind": "segment", **one.model_dump(exclude={"line"})})
        for one in segments
        if len(one.line) > 1
    ]
    if route is not None and len(route.order) > 1:
        tour = [_position(damages[place]) for place in [*route.order, route.order[0]]]
        facts = {"kind": "route", "length_m": route.length_m, "certified": route.certified}
        features.append(_feature("LineString", tour, facts))
    return {"type": "FeatureCollection", "features": features}


def _position(one: DamagePoint) -> tuple[float, float]:
    return round(one.longitude, FIGURES), round(one.latitude, FIGURES)


def _feature(kind: str, coordinates: Any, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": dict(properties)}


def count_by_class(damages: Sequence[DamagePoint]) -> dict[str, int]:
    """Damage by class, most frequent first."""
    return dict(Counter(one.label for one in damages).most_common())
