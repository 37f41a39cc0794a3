"""Counts of a survey: damage merged over pictures, per kilometre and per segment of the driven road, as GeoJSON."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scipy.spatial import cKDTree

from fovea_survey.geodesy import distances, to_space
from fovea_survey.schemas import (
    DamagePoint,
    FoundDamage,
    InspectionRoute,
    Observation,
    RoadSegment,
    SeenObject,
    Severity,
    SurveyOptions,
    UnplacedDamage,
)

FIGURES = 7
"""Decimals of degrees: a centimetre."""


@dataclass(frozen=True)
class _Sighting:
    """One damage as one picture shows it, or a film's track: detections with their pictures, the best first."""

    rows: tuple[tuple[int, Observation, SeenObject], ...]

    @property
    def best(self) -> tuple[Observation, SeenObject]:
        return self.rows[0][1:]

    @property
    def pictures(self) -> frozenset[int]:
        return frozenset(number for number, _, _ in self.rows)


def merge_damage(observations: Sequence[Observation], merge_m: float) -> list[DamagePoint]:
    """Merge damage of one class within `merge_m` metres in different pictures; each detection of one picture counts.

    Detections of one track of a film are one damage. Two tracks that share a frame are two.
    """
    sightings, damages = list(_iter_sightings(observations)), list[DamagePoint]()
    for label in dict.fromkeys(one.best[1].label for one in sightings):
        own = sorted((one for one in sightings if one.best[1].label == label), key=lambda one: -one.best[1].score)
        metres = to_space([_degrees(one.best[0]) for one in own])
        tree, free = cKDTree(metres), [True] * len(own)
        for place, one in enumerate(own):
            if not free[place]:
                continue
            free[place], group, pictures = False, [one], {*one.pictures}
            # One place at a time: the neighbours of all at once are gigabytes where thousands share a place.
            for other in tree.query_ball_point(metres[place], merge_m, return_sorted=True) if merge_m else ():
                if free[other] and own[other].pictures.isdisjoint(pictures):
                    group.append(own[other])
                    pictures |= own[other].pictures
                    free[other] = False
            latitude, longitude = _degrees(one.best[0])
            damages.append(DamagePoint(**_describe(group), latitude=latitude, longitude=longitude))
    return damages


def list_unplaced(observations: Sequence[Observation], problems: Mapping[int, str]) -> list[UnplacedDamage]:
    """List the damage of pictures without a place: each detection, or each track that has no place at all."""
    pictures, reasons = [observations[number] for number in problems], list(problems.values())
    placed = {seen.track for n, one in enumerate(observations) if n not in problems for seen in one.detections}
    return [
        UnplacedDamage(**_describe([one]), reason=reasons[one.rows[0][0]])
        for one in _iter_sightings(pictures)
        if one.best[1].track is None or one.best[1].track not in placed
    ]


def grade_damage(damage: FoundDamage, options: SurveyOptions) -> Severity | None:
    """Return the severity of a damage by its share of the picture; None where that is not known."""
    if damage.size is None:
        return None
    if damage.size >= options.high_size:
        return "high"
    return "medium" if damage.size >= options.medium_size else "low"


def _iter_sightings(observations: Sequence[Observation]) -> Iterator[_Sighting]:
    tracks: dict[tuple[str, str], list[tuple[int, Observation, SeenObject]]] = {}
    for number, one in enumerate(observations):
        for place, seen in enumerate(one.detections):
            key = (seen.label, seen.track) if seen.track else ("", f"{number}/{place}")
            tracks.setdefault(key, []).append((number, one, seen))
    for rows in tracks.values():
        yield _Sighting(tuple(sorted(rows, key=lambda row: -row[2].score)))


def _describe(group: Sequence[_Sighting]) -> dict[str, Any]:
    one, seen = group[0].best
    rows = [row for sighting in group for row in sighting.rows]
    sizes = [shown.size for _, _, shown in rows if shown.size is not None]
    links = [picture.picture for _, picture, _ in rows if picture.picture]
    return {
        "label": seen.label,
        "score": seen.score,
        "pictures": list(dict.fromkeys(picture.name for _, picture, _ in rows)),
        "time": one.time,
        "size": max(sizes, default=None),
        "picture": one.picture or next(iter(links), None),
    }


def measure_road(driven: Sequence[Observation], max_gap_m: float) -> list[float | None]:
    """Return metres from the picture before, for each picture; None where a stretch of road begins."""
    steps = distances([_degrees(one) for one in driven])
    return [None, *(float(step) if step <= max_gap_m else None for step in steps)][: len(driven)]


def cut_segments(
    driven: Sequence[Observation], steps: Sequence[float | None], damages: Sequence[DamagePoint], segment_m: float
) -> list[RoadSegment]:
    """Cut the driven road into segments of about `segment_m`, each with the damage whose best picture lies in it."""
    keys, ends = _number_segments(steps, segment_m)
    where = {(one.name, *_degrees(one)): place for place, one in enumerate(driven)}
    found = [where.get((damage.pictures[0], damage.latitude, damage.longitude)) for damage in damages]
    counts = Counter(keys[place] for place in found if place is not None)
    segments, members = [], dict[tuple[int, int], list[int]]()
    for place, key in enumerate(keys):
        members.setdefault(key, []).append(place)
    for key, places in members.items():
        last = places[-1]
        if last + 1 < len(driven) and steps[last + 1] is not None:
            places.append(last + 1)  # up to the first picture of the next segment
        length = ends[places[-1]] - ends[places[0]]
        segments.append(
            RoadSegment(
                start_m=round(ends[places[0]], 2),
                end_m=round(ends[places[-1]], 2),
                line=[_round(driven[place]) for place in places],
                damages=counts[key],
                per_km=round(counts[key] / length * 1000, 3) if length > 0 else 0.0,
            )
        )
    return segments


def _number_segments(steps: Sequence[float | None], segment_m: float) -> tuple[list[tuple[int, int]], list[float]]:
    """Stretch and segment of each picture, and its metres from the start; a stretch's last one starts no segment."""
    at, stretch = 0.0, 0
    keys, ends = list[tuple[int, int]](), list[float]()
    for place, step in enumerate(steps):
        stretch += step is None
        at += step or 0.0
        key = (stretch, int(at // segment_m))
        is_last = place + 1 == len(steps) or steps[place + 1] is None
        if is_last and step is not None and keys[-1][0] == stretch:
            key = keys[-1]
        keys.append(key)
        ends.append(at)
    return keys, ends


def build_geojson(
    damages: Sequence[DamagePoint],
    segments: Sequence[RoadSegment],
    route: InspectionRoute | None,
    not_placed: Sequence[UnplacedDamage] = (),
) -> dict[str, Any]:
    """Build a FeatureCollection (RFC 7946): longitude first, WGS 84; damage without a place has no geometry."""
    features = [_feature("Point", _round(one), _list_facts(one)) for one in damages]
    features += [
        {"type": "Feature", "geometry": None, "properties": {**_list_facts(one), "reason": one.reason}}
        for one in not_placed
    ]
    for one in segments:
        facts = {"kind": "segment", **one.model_dump(exclude={"line"})}
        features.append(_draw_line(one.line, facts) if len(one.line) > 1 else _feature("Point", one.line[0], facts))
    if route is not None and len(route.order) > 1:
        tour = [_round(damages[place]) for place in [*route.order, route.order[0]]]
        facts = {"kind": "route", "length_m": route.length_m, "certified": route.certified}
        features.append(_draw_line(tour, facts))
    return {"type": "FeatureCollection", "features": features}


def _list_facts(one: FoundDamage) -> dict[str, Any]:
    return {
        "kind": "damage",
        "label": one.label,
        "score": round(one.score, 4),
        "size": one.size,
        "severity": one.severity,
        "picture": one.picture,
        "pictures": one.pictures,
        "time": one.time.isoformat() if one.time else None,
    }


def _degrees(one: Observation | DamagePoint) -> tuple[float, float]:
    return one.latitude or 0.0, one.longitude or 0.0


def _round(one: Observation | DamagePoint) -> tuple[float, float]:
    """Longitude and latitude, as GeoJSON wants them."""
    latitude, longitude = _degrees(one)
    return round(longitude, FIGURES), round(latitude, FIGURES)


def _draw_line(points: Sequence[tuple[float, float]], properties: Mapping[str, Any]) -> dict[str, Any]:
    """A line of longitudes and latitudes, in two where it crosses the date line (RFC 7946, 3.1.9)."""
    parts = [[points[0]]]
    for (west, south), (east, north) in pairwise(points):
        if abs(east - west) > 180:
            side = math.copysign(180.0, west)
            across = east + 2 * side - west  # 0 where both are the date line itself
            share = (side - west) / across if across else 0.0
            middle = round(south + share * (north - south), FIGURES)
            parts[-1].append((side, middle))
            parts.append([(-side, middle)])
        parts[-1].append((east, north))
    is_cut = len(parts) > 1
    return _feature("MultiLineString" if is_cut else "LineString", parts if is_cut else parts[0], properties)


def _feature(kind: str, coordinates: Any, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": dict(properties)}


def count_by_class(damages: Sequence[FoundDamage]) -> dict[str, int]:
    """Count damage by class, most frequent first."""
    return dict(Counter(one.label for one in damages).most_common())
