"""Routes of studies: `/v1/segment/dicom`, and DICOMweb: a search of the PACS and a STOW target.

A study that a PACS stores here becomes a job: the gateway queues the request and answers 202, the worker segments, and
segmentations and reports go back to the PACS that is configured. DICOM's libraries are imported at the first request.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from fovea.api.mask import SegmentIn, SegmentOut
from fovea.api.replica import EFFECTFUL
from fovea.errors import Conflict, InvalidOption, NotReady, UnsupportedMedia
from fovea_dicom.bodies import DICOM, MAX_FILES, NamedFile, number_files, parse_related, unpack_archives, unpack_zip
from fovea_dicom.schemas import CorrectionOptions, CorrectionOut, PictureOptions, PicturesOut, StudyOptions, StudyOut
from fovea_dicom.web_client import DicomWebClient, PacsSettings
from shared.registry import CallContext
from shared.registry.discovery import shipped_weights
from shared.serving.host import Host
from shared.serving.http.openapi_routes import problems
from shared.serving.http.request_parsing import open_form, read_json_object
from shared.validation_errors import describe_query, parse_fields
from shared.vision.limits import platform_bounds

if TYPE_CHECKING:
    from fovea_dicom.study import StudySegmenter

router = APIRouter(tags=["domain"])
Options = TypeVar("Options", bound=BaseModel)

SEARCHABLE = ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "AccessionNumber", "PatientID")


_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE}
_PARTS = {
    "files": {**_FILES, "description": "DICOM files of the pictures, or zip archives of them."},
    "segmentation": {**_FILE, "description": "The DICOM SEG to correct."},
    "corrected": {**_FILES, "description": "PNGs named INSTANCE.FRAME.png, or a DICOM SEG."},
}
_CORRECTION_SCHEMA = {"type": "object", "required": ["segmentation", "corrected"], "properties": _PARTS}
_CORRECTION: dict[str, Any] = {"required": True, "content": {"multipart/form-data": {"schema": _CORRECTION_SCHEMA}}}
_BODY: dict[str, Any] = {
    "required": False,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"files": _FILES}}},
        "application/dicom": {},
        "application/zip": {},
    },
}


class StoredAsJob(Conflict):
    """A stored study becomes a job; the header asks a gateway to queue the request."""

    headers: ClassVar[Mapping[str, str]] = {"x-fovea-wants": "respond-async"}


@router.post(
    "/v1/segment/dicom",
    operation_id="segment_dicom",
    responses=problems(400, 409, 413, 415, 422, 503),
    openapi_extra={"parameters": describe_query(StudyOptions), "requestBody": _BODY},
)
async def segment_study(request: Request) -> StudyOut:
    """Segment a study: DICOM files as a form, one file, a zip archive, or a UID to fetch from the PACS."""
    options, files = await _read_request(request, StudyOptions)
    if options.store:
        _open_pacs().close()  # where there is none, this ends before minutes of work and not after them
    files = await _fetch_named(options, files)
    if not files:
        raise InvalidOption("There is no file.", hint="Send DICOM files, or name a study of the PACS.", field="files")
    return await _segment(request, files, options)


@router.post(
    "/v1/segment/dicom/pictures",
    operation_id="render_dicom",
    responses=problems(400, 413, 415, 422, 503),
    openapi_extra={"parameters": describe_query(PictureOptions), "requestBody": _BODY},
)
async def render(request: Request) -> PicturesOut:
    """Render the frames of DICOM files as pictures, for programs that can't read DICOM."""
    options, files = await _read_request(request, PictureOptions)
    bounds = platform_bounds(request.app.state.host.settings)
    found: PicturesOut = await asyncio.to_thread(_import_dicom("study").render_frames, files, bounds, options.window)
    return found


@router.post(
    "/v1/segment/dicom/corrections",
    operation_id="correct_segmentation",
    responses=problems(400, 409, 413, 415, 422, 503),
    openapi_extra={"parameters": describe_query(CorrectionOptions), "requestBody": _CORRECTION},
)
async def correct(request: Request) -> CorrectionOut:
    """Make a new version of a segmentation from corrected masks: PNGs, or a segmentation that a viewer saved."""
    form, texts = await read_form(request)
    given = {name: request.query_params.getlist(name) for name in request.query_params} | texts
    options = _validate(given, CorrectionOptions)
    parts: dict[str, list[NamedFile]] = {name: [] for name in _PARTS}
    for field, file in form:
        parts.setdefault(re.sub(r"(\d+|\[\])$", "", field), []).append(file)
    if unknown := set(parts) - set(_PARTS):
        hint = f"Available: {', '.join(_PARTS)}."
        raise InvalidOption(f"There is no file field {min(unknown)!r}.", hint=hint, field=min(unknown))
    if len(parts["segmentation"]) != 1:
        raise InvalidOption("Send one segmentation, the version to correct.", field="segmentation")
    pictures = await _fetch_named(options, unpack_archives(parts["files"]))
    bounds = platform_bounds(request.app.state.host.settings)
    make = _import_dicom("corrections").correct_segmentation
    before = parts["segmentation"][0].data
    found: CorrectionOut = await asyncio.to_thread(make, pictures, before, parts["corrected"], bounds, options.creator)
    if options.store:
        stored, refused = await _store([found.segmentation, found.report])
        found = found.model_copy(update={"stored": stored, "skipped": [*found.skipped, *refused]})
    return found


@router.get("/v1/dicomweb/studies", operation_id="search_studies", responses=problems(409, 422, 503))
async def search_studies(
    request: Request, limit: Annotated[int, Query(description="Most studies.")] = 50
) -> list[dict[str, Any]]:
    """Search the PACS: UIDs, dates, modalities and counts of studies; no names."""
    filters = {name: value for name, value in request.query_params.items() if name != "limit"}
    if unknown := set(filters) - set(SEARCHABLE):
        detail = f"Studies can't be searched by {min(unknown)}; known are {', '.join(SEARCHABLE)}."
        raise InvalidOption(detail, field=min(unknown))
    with closing(_open_pacs()) as client:
        return await asyncio.to_thread(client.search_studies, filters, limit=min(max(limit, 1), 500))


@router.post(
    "/v1/dicomweb/studies",
    operation_id="store_instances",
    responses={202: {"description": "The job that segments them."}, **problems(400, 409, 415, 503)},
    openapi_extra={**EFFECTFUL, "requestBody": {"required": True, "content": {"multipart/related": {}}}},
)
async def store_instances(request: Request) -> JSONResponse:
    """Take DICOM files as STOW-RS does; they are segmented as a job, whose results go to the PACS."""
    run: CallContext = request.scope["fovea.run"]
    files = number_files(parse_related(request.headers.get("content-type", ""), await request.body()))
    if run.job is None and "x-fovea-deadline-ms" in request.headers:  # a gateway, which can make it a job
        hint = "Send it through a gateway that has a queue, or use POST /v1/segment/dicom."
        raise StoredAsJob("A stored study is segmented as a job, and there is no queue.", hint=hint)
    found = await _segment(request, files, StudyOptions(store=PacsSettings().url is not None))
    if found.warnings and not found.stored:  # nobody else has the results
        raise Conflict(found.warnings[0], hint="Let the PACS take segmentations and comprehensive reports.")
    return JSONResponse(_stow_answer(found), media_type="application/dicom+json")


async def _segment(request: Request, files: Sequence[NamedFile], options: StudyOptions) -> StudyOut:
    host: Host = request.app.state.host
    run: CallContext = request.scope["fovea.run"]
    model = host.resolve(options.model, "segment")
    await host.wake(model)
    segmenter: type[StudySegmenter] = _import_dicom("study").StudySegmenter
    served = host.servable(model, "segment")
    # People's own weights mark what these people drew, which nobody here knows.
    label = "polyp" if getattr(served, "weights", "") in shipped_weights() else "lesion"

    async def predict(request: SegmentIn) -> SegmentOut:
        return cast("SegmentOut", await host.predict_when_free(model, request, run))

    bounds = platform_bounds(host.settings)
    found = await segmenter(predict, model, served.card.version, bounds, label).segment(files, options, run)
    if options.store:
        made = [data for series in found.series for data in (series.segmentation, series.report) if data is not None]
        stored, refused = await _store(made)
        return found.model_copy(update={"stored": stored, "warnings": [*found.warnings, *refused]})
    return found


def _import_dicom(module: str) -> Any:
    """A module that needs DICOM's libraries: they are slow to import, and pictures don't need them."""
    try:
        return importlib.import_module(f"fovea_dicom.{module}")
    except ModuleNotFoundError as error:
        hint = "Try: pip install fovea-dicom"
        raise NotReady(f"DICOM needs the package {error.name}, which is not installed.", hint=hint) from error


async def _read_request(request: Request, kind: type[Options]) -> tuple[Options, list[NamedFile]]:
    """Options and named files of a request: a form, an archive, or one file."""
    given = {name: request.query_params.getlist(name) for name in request.query_params}
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "multipart/form-data":
        files, texts = await read_form(request)
        return _validate(given | texts, kind), unpack_archives(file for _, file in files)
    body = await request.body()
    if media.endswith("json"):
        return _validate(given | read_json_object(body), kind), []
    options = _validate(given, kind)
    if not body:
        return options, []
    if media in {"application/zip", "application/x-zip-compressed"}:
        return options, unpack_zip(body)
    if media in {"", DICOM, "application/octet-stream"}:
        return options, number_files([body])
    raise UnsupportedMedia(f"{media} is not read; send {DICOM}, application/zip or a form.")


async def read_form(request: Request) -> tuple[list[tuple[str, NamedFile]], dict[str, list[str]]]:
    """Return the files of a form with their fields and names, and its texts."""
    files, texts = list[tuple[str, NamedFile]](), dict[str, list[str]]()
    async with open_form(request, max_files=MAX_FILES, max_fields=1000) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                file = NamedFile(value.filename or f"File {len(files) + 1}", await value.read())
                files.append((name, file))
            else:
                texts.setdefault(name, []).append(value)
    return files, texts


def _validate(given: Mapping[str, Any], kind: type[Options]) -> Options:
    """Options; of one that is given several times the last counts, and `include` may name a form each time."""
    values = {
        name: value if not isinstance(value, list) else ",".join(map(str, value)) if name == "include" else value[-1]
        for name, value in given.items()
    }
    return parse_fields(kind, values)


def _open_pacs() -> DicomWebClient:
    settings = PacsSettings()
    if settings.url is None:
        raise Conflict("No PACS is configured.", hint="Set FOVEA_DICOMWEB_URL to its DICOMweb root.")
    secret = settings.authorization
    return DicomWebClient(settings.url, authorization=secret.get_secret_value() if secret else None)


async def _fetch_named(options: StudyOptions | CorrectionOptions, files: list[NamedFile]) -> list[NamedFile]:
    """The files that were sent, or those of the study of the PACS that the options name.

    Raises InvalidOption: there are both, or a series is named without its study.
    """
    if options.study is None:
        if options.series is not None:
            hint = "Name its study too, or send the files of that series only."
            raise InvalidOption("`series` is one of a `study` in the PACS.", hint=hint, field="series")
        return files
    if files:
        raise InvalidOption("Send files, or name a study of the PACS, not both.", field="study")
    with closing(_open_pacs()) as client:
        return number_files(await asyncio.to_thread(client.retrieve, options.study, options.series))


async def _store(files: Sequence[bytes]) -> tuple[list[str], list[str]]:
    with closing(_open_pacs()) as client:
        return await asyncio.to_thread(client.store, files) if files else ([], [])


def _stow_answer(found: StudyOut) -> dict[str, Any]:
    """The answer to a store (PS3.18 10.5.3): what was taken, and what failed as one count."""
    taken = [{"00081155": {"vr": "UI", "Value": [one.instance]}} for series in found.series for one in series.instances]
    answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": taken}}
    if found.skipped:
        failed = [{"00081197": {"vr": "US", "Value": [0xC000]}} for _ in found.skipped]
        answer["00081198"] = {"vr": "SQ", "Value": failed}
    return answer
