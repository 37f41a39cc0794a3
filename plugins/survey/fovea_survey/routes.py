"""`POST /v1/detect/survey`: photographs of a drive in, damage on a map out, in the form that `Accept` names."""

import asyncio
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from fovea.errors import FoveaError
from fovea_planning.plan_schema import PlanIn
from fovea_survey import counting, forms
from fovea_survey.geodesy import to_metres
from fovea_survey.placing import name_apart, place_pictures
from fovea_survey.schemas import (
    DamagePoint,
    FoundDamage,
    InspectionRoute,
    Observation,
    SurveyIn,
    SurveyOptions,
    SurveyOut,
)
from fovea_survey.search import Search
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.negotiation import choose
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import open_form, read_json_object
from shared.validation_errors import describe_query, parse_fields

router = APIRouter(tags=["domain"])

MAX_ROUTE_POINTS = 2000
MAX_NAME = 400
"""Letters of a file's name that are kept, its last ones; numbers of frames and of doubles follow."""
AnyDamage = TypeVar("AnyDamage", bound=FoundDamage)

_FILE = {"type": "string", "format": "binary"}
_IMAGES = "Photographs with a place in their EXIF: JPEG, PNG, TIFF, WebP, HEIC."
_FORM = {
    "type": "object",
    "properties": {
        "images": {"type": "array", "items": _FILE, "description": _IMAGES},
        "video": {**_FILE, "description": "A film; it needs `gpx`."},
        "gpx": {**_FILE, "description": "Track, for a film or for photographs without place."},
    },
}
_BODY = SurveyIn.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]


@router.post(
    "/v1/detect/survey",
    operation_id="survey_road",
    response_model=SurveyOut,
    responses={
        200: {"content": {forms.GEOJSON: {}, forms.SVG: {}, forms.CSV: {}, forms.ZIP: {}}},
        **problems(400, 413, 415, 422, 503),
    },
    openapi_extra={
        "parameters": describe_query(SurveyOptions),
        "requestBody": {"content": {"multipart/form-data": {"schema": _FORM}, forms.JSON: {"schema": _BODY}}},
    },
)
async def survey_road(request: Request) -> Response:
    """Find damage in photographs or a film of a drive: where, how much per kilometre, and a route to inspect it."""
    media = choose(request.headers.get("accept"), [forms.JSON, forms.GEOJSON, forms.SVG, forms.CSV, forms.ZIP])
    host: Host = request.app.state.host
    run: CallContext = request.scope["fovea.run"]
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with open_form(request, max_files=2000, max_fields=100) as form:
            texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            options = parse_fields(SurveyOptions, {**dict(request.query_params), **texts})
            uploads = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            files = [(name, (value.filename or name)[-MAX_NAME:], await value.read()) for name, value in uploads]
        if media == forms.ZIP:  # an archive holds the pictures that its map links to
            options = options.model_copy(update={"boxed": True})
        await host.wake(host.resolve(options.model, "detect"))
        observations = await Search.of(host, options, run).observe(files)
    else:
        body = parse_fields(SurveyIn, {**dict(request.query_params), **read_json_object(await request.body())})
        options, observations = body, body.observations
    if media == forms.ZIP:
        observations = forms.link_pictures(observations)
    found = await _count(observations, options, host, run)
    return await asyncio.to_thread(forms.render, found, media or forms.JSON)


async def _count(observations: list[Observation], options: SurveyOptions, host: Host, run: CallContext) -> SurveyOut:
    observations = name_apart(observations)
    placed = await asyncio.to_thread(place_pictures, observations, options.far_m)
    driven = placed.driven
    merged = await asyncio.to_thread(counting.merge_damage, driven, options.merge_m)
    damages = [_grade(one, options) for one in merged]
    not_placed = [_grade(one, options) for one in counting.list_unplaced(observations, placed.problems)]
    steps = counting.measure_road(driven, options.max_gap_m)
    length = sum(step or 0.0 for step in steps) / 1000
    segments = counting.cut_segments(driven, steps, damages, options.segment_m)
    route, notes = await _plan(damages, options, host, run)
    counts = counting.count_by_class(damages)
    if any(one.time is None for one in driven):
        notes.append("Some pictures state no time; they follow the others, ordered by name.")
    if len(driven) > 1 and all(step is None for step in steps):
        notes.append(f"There is no road: pictures lie further apart than {options.max_gap_m:g} m (option `max_gap_m`).")
    if len({one.time.tzinfo is None for one in driven if one.time is not None}) > 1:
        notes.append("Some pictures state a time without its zone; it counts as UTC (option `zone`).")
    return SurveyOut(
        model=options.model or (host.resolve(None, "detect") if "detect" in host.tasks() else None),
        pictures=len(observations),
        without_place=[observations[number].name for number in placed.problems],
        place_problems=[f"{observations[number].name}: {why}" for number, why in placed.problems.items()],
        failed=[f"{one.name}: {one.problem}" for one in observations if one.problem],
        damages=damages,
        counts=counts,
        not_placed=not_placed,
        counts_not_placed=counting.count_by_class(not_placed),
        length_km=round(length, 6),
        per_km=round(len(damages) / length, 3) if length else None,
        per_km_by_class={label: round(count / length, 3) for label, count in counts.items()} if length else {},
        segments=segments,
        route=route,
        observations=observations,
        geojson=counting.build_geojson(damages, segments, route, not_placed),
        notes=[*placed.notes, *notes],
    )


def _grade(one: AnyDamage, options: SurveyOptions) -> AnyDamage:
    return one.model_copy(update={"severity": counting.grade_damage(one, options)})


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
    length, bound = round(found.objective, 2), round(found.lower_bound, 2)
    order = found.order or []
    return InspectionRoute(length_m=length, lower_bound_m=bound, certified=found.certified, order=order), []
