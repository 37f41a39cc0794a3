"""`POST /v1/detect/survey`: photographs of a drive in, damage on a map out. By `Accept` also GeoJSON, SVG or CSV."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime as dt
import io
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from fovea_survey import counting
from fovea_survey.geodesy import to_metres
from fovea_survey.gpx import Track, parse_gpx
from fovea_survey.places import Place, heic_to_png, read_place, read_time
from fovea_survey.road_map import draw_map
from fovea_survey.schemas import (
    DamagePoint,
    InspectionRoute,
    Observation,
    SeenObject,
    SurveyIn,
    SurveyOptions,
    SurveyOut,
)
from fovea_survey.video.video_decoder import VideoFile
from shared.api.boxes import DetectIn
from shared.api.plan import PlanIn
from shared.errors import FoveaError, InvalidOption, Malformed
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import open_form
from shared.vision.limits import DecodeBounds, platform_bounds

router = APIRouter(tags=["domain"])

JSON, GEOJSON, SVG, CSV = "application/json", "application/geo+json", "image/svg+xml", "text/csv"
AT_ONCE = 4
MAX_ROUTE_POINTS = 2000
USUAL_FPS = 30.0
"""Of films that do not say."""

MAX_FRAMES = 20_000
"""That are searched in one film."""

Detect = Callable[[bytes], Awaitable[list[SeenObject]]]

_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": prop, "description": prop.get("description", "")}
    for name, prop in SurveyOptions.model_json_schema()["properties"].items()
]
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "properties": {
        "images": {**_FILES, "description": "Photographs with a place in their EXIF: JPEG, PNG, TIFF, WebP, HEIC."},
        "video": {"type": "string", "format": "binary", "description": "A film, with `gpx` beside it."},
        "gpx": {
            "type": "string",
            "format": "binary",
            "description": "Track, for a film or for photographs without place.",
        },
    },
}


@router.post(
    "/v1/detect/survey",
    operation_id="survey_road",
    response_model=SurveyOut,
    responses={200: {"content": {GEOJSON: {}, SVG: {}, CSV: {}}}, **problems(400, 413, 415, 422, 503)},
    openapi_extra={
        "parameters": _PARAMETERS,
        "requestBody": {
            "content": {
                "multipart/form-data": {"schema": _FORM},
                JSON: {"schema": SurveyIn.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]},
            }
        },
    },
)
async def survey_road(request: Request) -> Response:
    """Find damage in photographs or a film of a drive: where, how much per kilometre, and a route to inspect it."""
    media = choose(request.headers.get("accept"), [JSON, GEOJSON, SVG, CSV])
    host: Host = request.app.state.host
    run: CallContext = request.scope["fovea.run"]
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with open_form(request, max_files=2000, max_fields=100) as form:
            texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            options = _validate(SurveyOptions, {**dict(request.query_params), **texts})
            uploads = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            files = [(name, value.filename or name, await value.read()) for name, value in uploads]
        observations = await _observe(files, options, host, run)
    else:
        body = _validate(SurveyIn, {**dict(request.query_params), **_read_json(await request.body())})
        options, observations = body, body.observations
    found = await _count(observations, options, host, run)
    return _render(found, media or JSON)


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError as error:
        raise Malformed("The body is not JSON.", field="body") from error
    if not isinstance(found, dict):
        raise Malformed("The body is not a JSON object.", field="body")
    return found


def _validate(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidOption(first["msg"], field=".".join(map(str, first["loc"]))) from error


async def _observe(
    files: list[tuple[str, str, bytes]], options: SurveyOptions, host: Host, run: CallContext
) -> list[Observation]:
    """What is in the files, each with its place."""
    bounds = platform_bounds(host.settings)
    tracks = [data for name, _, data in files if name == "gpx"]
    track = await asyncio.to_thread(parse_gpx, tracks[0]) if tracks else None
    detect = _detector(host, options, run)
    pictures = [(name, data) for field, name, data in files if field not in {"gpx", "video"}]
    videos = [(name, data) for field, name, data in files if field == "video"]
    if not pictures and not videos:
        raise InvalidOption(
            "There is no picture.", hint="Send photographs as `images`, or a film as `video`.", field="images"
        )
    found: list[Observation] = []
    for begin in range(0, len(pictures), AT_ONCE):
        run.check()
        run.progress(begin / len(pictures), f"{begin} of {len(pictures)} pictures")
        part = pictures[begin : begin + AT_ONCE]
        found += await asyncio.gather(*(_look(name, data, track, detect, bounds) for name, data in part))
    for name, data in videos:
        if track is None:
            raise InvalidOption("A film has no places of its own.", hint="Send its track as `gpx`.", field="gpx")
        found += await _watch(name, data, track, options, detect, bounds, run)
    return found


async def _look(name: str, data: bytes, track: Track | None, detect: Detect, bounds: DecodeBounds) -> Observation:
    place, time = await asyncio.to_thread(lambda: (read_place(data), read_time(data)))
    if place is None and track is not None and time is not None:
        place = track.locate(time)
    try:
        seen = await detect(await asyncio.to_thread(heic_to_png, data, bounds))
    except FoveaError as error:
        return _observation(name, place, [], problem=error.detail)
    return _observation(name, place, seen)


async def _watch(
    name: str, data: bytes, track: Track, options: SurveyOptions, detect: Detect, bounds: DecodeBounds, run: CallContext
) -> list[Observation]:
    """Every so many frames of a film, placed by the track."""
    film = await asyncio.to_thread(VideoFile, data, bounds)
    start, fps, found = options.start or track.start, options.fps or film.fps or USUAL_FPS, []
    with contextlib.closing(film):
        if film.count > MAX_FRAMES * options.every:
            detail = f"{film.count // options.every:,} frames would be searched; at most {MAX_FRAMES:,} are."
            raise InvalidOption(detail, hint="Raise `every`, or cut the film.", field="every")
        frames: Iterator[tuple[int, bytes]] = itertools.islice(
            enumerate(film), 0, MAX_FRAMES * options.every, options.every
        )
        while (taken := await asyncio.to_thread(next, frames, None)) is not None:
            run.check()
            number, picture = taken
            run.progress(number / film.count if film.count else 0.0, f"frame {number} of {film.count or '?'}")
            time = _time_of(start, number / fps)
            place = track.locate(time)
            found.append(await _look_at_frame(f"{name}#{number}", picture, place, time, detect))
    return found


def _time_of(start: dt.datetime, seconds: float) -> dt.datetime:
    """When a frame was taken, as UTC where the start says no zone."""
    zoned = start if start.tzinfo else start.replace(tzinfo=dt.UTC)
    try:
        return zoned.astimezone(dt.UTC) + dt.timedelta(seconds=seconds)
    except OverflowError as error:
        detail = f"A film that starts at {start.isoformat()} leaves the years that there are."
        raise InvalidOption(detail, hint="Give its `start`, and its `fps`.", field="start") from error


async def _look_at_frame(
    name: str, picture: bytes, place: Place | None, time: dt.datetime, detect: Detect
) -> Observation:
    timed = replace(place, time=time) if place else None
    try:
        return _observation(name, timed, await detect(picture))
    except FoveaError as error:
        return _observation(name, timed, [], problem=error.detail)


def _observation(name: str, place: Place | None, seen: list[SeenObject], problem: str | None = None) -> Observation:
    return Observation(
        name=name,
        latitude=place.latitude if place else None,
        longitude=place.longitude if place else None,
        time=place.time if place else None,
        detections=seen,
        problem=problem,
    )


def _detector(host: Host, options: SurveyOptions, run: CallContext) -> Detect:
    model = host.resolve(options.model, "detect")
    host.servable(model, "detect")
    asked = {"model": model, "confidence": options.confidence, "iou": options.iou, "classes": options.classes}

    async def detect(picture: bytes) -> list[SeenObject]:
        answer: Any = await host.predict(model, DetectIn(image=picture, **asked), run)
        return [SeenObject(label=one.label, score=min(one.score, 1.0), box=one.box) for one in answer.detections]

    return detect


async def _count(observations: list[Observation], options: SurveyOptions, host: Host, run: CallContext) -> SurveyOut:
    driven = counting.drive_in_order(observations)
    damages = await asyncio.to_thread(counting.merge_damage, driven, options.merge_m)
    steps = counting.measure_road(driven, options.max_gap_m)
    length = sum(step or 0.0 for step in steps) / 1000
    segments = counting.cut_segments(driven, steps, damages, options.segment_m)
    route, notes = await _plan(damages, options, host, run)
    counts = counting.count_by_class(damages)
    if any(one.time is None for one in driven):
        notes.append("Some pictures state no time; they stand behind the others, by name.")
    return SurveyOut(
        model=options.model or (host.resolve(None, "detect") if "detect" in host.tasks() else None),
        pictures=len(observations),
        without_place=[one.name for one in observations if one.latitude is None],
        failed=[f"{one.name}: {one.problem}" for one in observations if one.problem],
        damages=damages,
        counts=counts,
        length_km=round(length, 6),
        per_km=round(len(damages) / length, 3) if length else None,
        per_km_by_class={label: round(count / length, 3) for label, count in counts.items()} if length else {},
        segments=segments,
        route=route,
        observations=observations,
        geojson=counting.build_geojson(damages, segments, route),
        notes=notes,
    )


async def _plan(
    damages: list[DamagePoint], options: SurveyOptions, host: Host, run: CallContext
) -> tuple[InspectionRoute | None, list[str]]:
    """A closed tour in metres by the service's own planner."""
    if not options.route or len(damages) < 2:
        return None, []
    if len(damages) > MAX_ROUTE_POINTS:
        return None, [f"A route is planned through {MAX_ROUTE_POINTS} places at most; raise merge_m."]
    if "plan" not in host.tasks():
        return None, ["No planner is served, so there is no route."]
    metres = to_metres([(one.latitude, one.longitude) for one in damages])
    request = PlanIn(task="tsp", points=tuple((float(x), float(y)) for x, y in metres))
    try:
        found: Any = await host.predict(host.resolve(None, "plan"), request, run)
    except FoveaError as error:
        return None, [f"There is no route: {error.detail}"]
    return (
        InspectionRoute(
            length_m=round(found.objective, 2),
            lower_bound_m=round(found.lower_bound, 2),
            certified=found.certified,
            order=found.order or [],
        ),
        [],
    )


def _render(found: SurveyOut, media: str) -> Response:
    if media == GEOJSON:
        return JSONResponse(found.geojson, media_type=GEOJSON)
    if media == SVG:
        return Response(draw_map(found), media_type=SVG)
    if media == CSV:
        out = io.StringIO()
        sheet = csv.writer(out, lineterminator="\n")
        sheet.writerow(("label", "latitude", "longitude", "score", "time", "pictures"))
        for one in found.damages:
            time = one.time.isoformat() if one.time else ""
            row = (
                _plain(one.label),
                one.latitude,
                one.longitude,
                round(one.score, 4),
                time,
                _plain(" ".join(one.pictures)),
            )
            sheet.writerow(row)
        return Response(out.getvalue(), media_type=CSV)
    return Response(found.model_dump_json(), media_type=JSON)


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@"} else text
