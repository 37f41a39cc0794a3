"""Routes of studies: `/v1/segment/dicom`, and DICOMweb: a search of the PACS and a STOW target.

What a PACS stores here becomes a job: the gateway queues the request and answers 202, the worker segments, and
segmentations and reports go back to the PACS that is configured. DICOM's libraries are imported at the first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from fovea_dicom.bodies import DICOM, parse_related, unpack_zip
from fovea_dicom.schemas import StudyOptions, StudyOut
from fovea_dicom.settings import PacsSettings
from fovea_dicom.web_client import DicomWebClient
from shared.api.mask import SegmentIn, SegmentOut
from shared.api.replica import EFFECTFUL
from shared.errors import Conflict, InvalidOption, NotReady, UnsupportedMedia
from shared.registry import CallContext
from shared.serving.host import Host
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import ParsedRequest, parse_request
from shared.vision.limits import platform_bounds

if TYPE_CHECKING:
    from fovea_dicom.study import StudySegmenter

router = APIRouter(tags=["domain"])

SEARCHABLE = ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "AccessionNumber", "PatientID")
_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "schema": prop, "description": prop.get("description", "")}
    for name, prop in StudyOptions.model_json_schema()["properties"].items()
]
_BODY: dict[str, Any] = {
    "required": False,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/dicom": {},
        "application/zip": {},
    },
}


class StoredAsJob(Conflict):
    """What is stored becomes a job; the header asks a gateway to queue the request."""

    headers: ClassVar[Mapping[str, str]] = {"x-fovea-wants": "respond-async"}


@router.post(
    "/v1/segment/dicom",
    operation_id="segment_dicom",
    responses=problems(400, 409, 413, 415, 422, 503),
    openapi_extra={"parameters": _PARAMETERS, "requestBody": _BODY},
)
async def segment_study(request: Request) -> StudyOut:
    """Segment a study: DICOM files as a form, one file, a zip archive, or a UID to fetch from the PACS."""
    parsed = await parse_request(request)
    options = _options(parsed)
    if options.study is not None:
        client = _open_pacs()
        try:
            files = await asyncio.to_thread(client.retrieve, options.study, options.series)
        finally:
            client.close()
    else:
        files = _files(parsed)
    return await _segment(request, files, options)


@router.get("/v1/dicomweb/studies", operation_id="search_studies", responses=problems(409, 422, 503))
async def search_studies(request: Request, limit: int = 50) -> list[dict[str, Any]]:
    """Search the PACS: UIDs, dates, modalities and counts of studies; no names."""
    filters = {name: value for name, value in request.query_params.items() if name != "limit"}
    if unknown := set(filters) - set(SEARCHABLE):
        detail = f"Studies can't be searched by {min(unknown)}; known are {', '.join(SEARCHABLE)}."
        raise InvalidOption(detail, field=min(unknown))
    client = _open_pacs()
    try:
        return await asyncio.to_thread(client.search_studies, filters, limit=min(max(limit, 1), 500))
    finally:
        client.close()


@router.post(
    "/v1/dicomweb/studies",
    operation_id="store_instances",
    responses={202: {"description": "The job that segments them."}, **problems(400, 409, 415, 503)},
    openapi_extra={**EFFECTFUL, "requestBody": {"required": True, "content": {"multipart/related": {}}}},
)
async def store_instances(request: Request) -> JSONResponse:
    """Take DICOM files as STOW-RS does; they are segmented as a job, whose results go to the PACS."""
    run: CallContext = request.scope["fovea.run"]
    files = parse_related(request.headers.get("content-type", ""), await request.body())
    if run.job is None and "x-fovea-deadline-ms" in request.headers:  # a gateway, which can make it a job
        hint = "Send it through a gateway that has a queue, or use POST /v1/segment/dicom."
        raise StoredAsJob("What is stored here is segmented as a job, and there is no queue.", hint=hint)
    found = await _segment(request, files, StudyOptions(store=PacsSettings().url is not None))
    return JSONResponse(_stow_answer(found), media_type="application/dicom+json")


async def _segment(request: Request, files: Sequence[bytes], options: StudyOptions) -> StudyOut:
    host: Host = request.app.state.host
    run: CallContext = request.scope["fovea.run"]
    found = await _segmenter(host, options.model, run).segment(files, options, run)
    if options.store:
        made = [data for series in found.series for data in (series.segmentation, series.report) if data is not None]
        client = _open_pacs()
        try:
            stored = await asyncio.to_thread(client.store, made) if made else []
        finally:
            client.close()
        return found.model_copy(update={"stored": stored})
    return found


def _segmenter(host: Host, name: str | None, run: CallContext) -> StudySegmenter:
    try:
        from fovea_dicom.study import StudySegmenter  # noqa: PLC0415  # slow, and not needed by pictures
    except ModuleNotFoundError as error:
        hint = "Try: pip install fovea-dicom"
        raise NotReady(f"DICOM needs the package {error.name}, which is not installed.", hint=hint) from error

    model = host.resolve(name, "segment")
    card = host.servable(model, "segment").card

    async def predict(request: SegmentIn) -> SegmentOut:
        return cast("SegmentOut", await host.predict(model, request, run))

    bounds = platform_bounds(host.settings)
    return StudySegmenter(predict, model, card.version, bounds)


def _options(parsed: ParsedRequest) -> StudyOptions:
    texts = {name: values[-1] for name, values in parsed.texts.items()}
    try:
        return StudyOptions.model_validate({**texts, **parsed.options})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidOption(first["msg"], field=".".join(map(str, first["loc"]))) from error


def _files(parsed: ParsedRequest) -> list[bytes]:
    if parsed.body is not None and parsed.media in {"application/zip", "application/x-zip-compressed"}:
        return unpack_zip(parsed.body)
    if parsed.body is not None and parsed.media in {DICOM, "application/octet-stream"}:
        return [parsed.body]
    if parsed.body is not None:
        raise UnsupportedMedia(f"{parsed.media} is not read; send {DICOM}, application/zip or a form.")
    files = [data for _, data in parsed.files]
    if not files:
        raise InvalidOption("There is no file.", hint="Send DICOM files, or name a study of the PACS.", field="files")
    return files


def _open_pacs() -> DicomWebClient:
    settings = PacsSettings()
    if settings.url is None:
        raise Conflict("No PACS is configured.", hint="Set FOVEA_DICOMWEB_URL to its DICOMweb root.")
    secret = settings.authorization
    return DicomWebClient(settings.url, authorization=secret.get_secret_value() if secret else None)


def _stow_answer(found: StudyOut) -> dict[str, Any]:
    """The answer to a store (PS3.18 10.5.3): what was taken, and what failed as one count."""
    taken = [{"00081155": {"vr": "UI", "Value": [one.instance]}} for series in found.series for one in series.instances]
    answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": taken}}
    if found.skipped:
        failed = [{"00081197": {"vr": "US", "Value": [0xC000]}} for _ in found.skipped]
        answer["00081198"] = {"vr": "SQ", "Value": failed}
    return answer
