"""The forms of a survey: JSON, GeoJSON, a map, CSV, and an archive of all of them with the pictures."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from fastapi.responses import JSONResponse, Response

from fovea.api.csv_form import format_csv
from fovea_survey.road_map import draw_map
from fovea_survey.schemas import FoundDamage, Observation, SurveyOut

JSON, GEOJSON, SVG = "application/json", "application/geo+json", "image/svg+xml"
CSV, ZIP = "text/csv", "application/zip"
COLUMNS = ("label", "place", "latitude", "longitude", "score", "severity", "size", "time", "picture", "pictures")
"""Of the CSV; `place` is `found` or the reason why there is none."""


def render(found: SurveyOut, media: str) -> Response:
    """Return a survey in a form."""
    if media == GEOJSON:
        return JSONResponse(found.geojson, media_type=GEOJSON)
    writers: dict[str, Callable[[SurveyOut], str | bytes]] = {SVG: draw_map, CSV: write_csv, ZIP: build_archive}
    return Response(writers.get(media, SurveyOut.model_dump_json)(found), media_type=media)


def write_csv(found: SurveyOut) -> str:
    """Write a line for each damage, those without a place too."""
    placed = [_row(one, "found", one.latitude, one.longitude) for one in found.damages]
    return format_csv([COLUMNS, *placed, *(_row(one, f"not placed: {one.reason}", "", "") for one in found.not_placed)])


def _row(one: FoundDamage, place: str, latitude: float | str, longitude: float | str) -> tuple[object, ...]:
    return (
        one.label,
        place,
        latitude,
        longitude,
        round(one.score, 4),
        one.severity or "",
        "" if one.size is None else one.size,
        one.time.isoformat() if one.time else "",
        one.picture or "",
        "; ".join(one.pictures),
    )


def build_archive(found: SurveyOut) -> bytes:
    """Pack survey.json, .geojson, .svg and .csv, and the pictures with boxes that the answer holds."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        facts = found.model_dump_json(exclude={"geojson": True, "observations": {"__all__": {"boxed"}}}, indent=1)
        archive.writestr("survey.json", facts)
        archive.writestr("survey.geojson", json.dumps(found.geojson))
        archive.writestr("survey.svg", draw_map(found))
        archive.writestr("survey.csv", write_csv(found))
        for one in found.observations:
            if one.boxed is not None and one.picture is not None:
                archive.writestr(one.picture, one.boxed, zipfile.ZIP_STORED)
    return out.getvalue()


def link_pictures(observations: Sequence[Observation], first: int = 0) -> list[Observation]:
    """Return the pictures with the links of their boxed copies: `pictures/0003-road.jpg`, counted from `first`."""
    return [
        one if one.boxed is None else one.model_copy(update={"picture": f"pictures/{number:04d}-{_stem(one.name)}.jpg"})
        for number, one in enumerate(observations, first)
    ]


def _stem(name: str) -> str:
    """The name of a file or of a film's frame, in letters that every file system takes."""
    last = PurePosixPath(name).name
    stem = last if "#" in last else PurePosixPath(last).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "picture"
