"""Request parsing: JSON, multipart, raw bytes and query become requests of a model's In.

Two steps, because the body names the model and the model decides what the body means: `parse_request` takes the body
apart, `build_requests` builds one `In` per picture.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, QueryParams, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from fovea.errors import BadInput, FoveaError, InvalidOption, Malformed, TooLarge, UnsupportedMedia
from shared.serving import servable_schema
from shared.validation_errors import list_errors

_FILES = ("file", "image", "files", "images")  # form fields that fill the model's first field of bytes


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; an empty one of an empty body. Raises Malformed: it is not a JSON object."""
    try:
        if isinstance(found := json.loads(body or b"{}"), dict):
            return found
    except (ValueError, RecursionError) as error:
        raise Malformed("The body is not JSON.", field="body") from error
    raise Malformed("The body is not a JSON object.", field="body")


@dataclass(slots=True)
class ParsedRequest:
    """A request taken apart.

    Attributes:
        options: Typed values, from JSON.
        texts: Text values, from the query or a form; what they mean depends on the field.
        files: (field, bytes) of a form, in order.
        body: A raw body.
        media: Its content type.
    """

    options: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)
    body: bytes | None = None
    media: str = ""

    @property
    def model(self) -> str | None:
        """The model that the request names."""
        name = self.options.get("model", self.texts.get("model", [None])[-1])
        if name is not None and not isinstance(name, str):
            raise InvalidOption("model must be the name of a model, as text.", field="model")
        return name or None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job's copy of a request, read as an HTTP request is."""

    headers: Headers
    query_params: QueryParams
    content: bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body."""
        yield self.content

    async def body(self) -> bytes:
        """The body."""
        return self.content


async def parse_request(request: Request | JobRequest) -> ParsedRequest:
    """Take a request apart by its content type.

    Raises Malformed: the body is not what its content type says; UnsupportedMedia: the content type is unknown.
    """
    parsed = ParsedRequest(texts={name: request.query_params.getlist(name) for name in request.query_params})
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media in {"multipart/form-data", "application/x-www-form-urlencoded"}:
        async with open_form(request, max_files=1000, max_fields=1000) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    parsed.files.append((name, await value.read()))
                else:
                    parsed.texts.setdefault(name, []).append(value)
        return parsed
    body = await request.body()
    if media.endswith("json") or (not media and body[:1] == b"{"):
        parsed.options = _parse_object(body)
    elif body:
        parsed.body, parsed.media = body, media or "application/octet-stream"
    return parsed


@asynccontextmanager
async def open_form(request: Request | JobRequest, *, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """The form of a request; its files go with the block.

    Raises Malformed: its charset can't be read, for example `undefined`; BadInput: it is broken or too long.
    """
    is_multipart = request.headers.get("content-type", "").strip().lower().startswith("multipart/form-data")
    try:
        async with aclosing(request.stream()) as stream:
            parser: MultiPartParser | FormParser = FormParser(request.headers, stream, max_fields=max_fields)
            if is_multipart:
                parser = MultiPartParser(request.headers, stream, max_files=max_files, max_fields=max_fields)
            form = await parser.parse()
    except MultiPartException as error:
        raise BadInput(error.message) from error
    except ValueError as error:
        raise Malformed(f"The form can't be read: {error}.", hint="Send it with charset=utf-8, or without.") from error
    try:
        yield form
    finally:
        await form.close()


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        found = pydantic_core.from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)  # no byte-order mark
    except ValueError as error:
        raise Malformed(f"The body is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InvalidOption(f"The body must be a JSON object, not {type(found).__name__}.", field="body")
    return found


def build_requests(
    parsed: ParsedRequest, model: type[BaseModel], max_images: int
) -> tuple[list[BaseModel | FoveaError], bool]:
    """One request per picture, or its error where only that picture is wrong; and whether a list was sent.

    Raises InvalidOption: an option is unknown or out of range, `field` names it; TooLarge: more pictures than
    `max_images`; UnsupportedMedia: raw bytes of another kind than the model takes.
    """
    fields = servable_schema.properties(model)
    options = {name: value for name, value in parsed.options.items() if name != "model" or name in fields}
    for name, texts in parsed.texts.items():
        if name in fields:
            options.setdefault(name, servable_schema.decode_text(name, fields[name], texts))
        elif name != "model":
            options.setdefault(name, texts[-1])
    pictures, many = _collect_pictures(parsed, model, options)
    _refuse_unknown(options, model)
    if not many:
        return [_validate(model, options | pictures)], False
    (main, several), *_ = pictures.items()
    if not isinstance(several, list) or not several:
        raise InvalidOption("images must be a list of at least one picture.", field="images")
    if len(several) > max_images:
        detail = f"{len(several)} pictures were sent; max_images is {max_images}."
        raise TooLarge(detail, hint="Send them in several requests.", field="images")
    return [_build_value_of(model, options, main, picture) for picture in several], True


def _collect_pictures(
    parsed: ParsedRequest, model: type[BaseModel], options: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Fields of bytes outside the options, and whether the first is a list of pictures to answer one by one."""
    blobs, fields = servable_schema.blob_fields(model), servable_schema.properties(model)
    main = next(iter(blobs), None)
    if parsed.body is not None:
        return {_raw_field(main, blobs, parsed.media): parsed.body}, False
    if main is not None and "images" in options and "images" not in fields:
        return {main: options.pop("images")}, True
    found: dict[str, list[bytes]] = {}
    for name, data in parsed.files:
        target = name if name in blobs else main if name in _FILES else None
        if target is None:
            hint = f"Files go into {', '.join(blobs)}." if blobs else "This model takes no files."
            raise InvalidOption(f"There is no file field {name!r}.", field=name, hint=hint)
        found.setdefault(target, []).append(data)
    many = main is not None and not servable_schema.is_list(fields[main]) and len(found.get(main, ())) > 1
    if many:
        options |= {name: _value_of(fields[name], data) for name, data in found.items() if name != main}
        return {str(main): found[str(main)]}, True
    return {name: _value_of(fields[name], data) for name, data in found.items()}, False


def _value_of(prop: Mapping[str, Any], data: list[bytes]) -> Any:
    return data if servable_schema.is_list(prop) else data[-1]


def _raw_field(main: str | None, blobs: Mapping[str, str], media: str) -> str:
    accepted = blobs.get(main or "", "")
    fits = media == "application/octet-stream" or media.partition("/")[0] == accepted.partition("/")[0]
    if main is None or not fits:
        kinds = ["application/json", "multipart/form-data", *([accepted] if accepted else [])]
        raise UnsupportedMedia(f"A body of type {media!r} is not read here.", hint=f"Send {', '.join(kinds)}.")
    return main


def _refuse_unknown(options: Mapping[str, Any], model: type[BaseModel]) -> None:
    if model.model_config.get("extra") == "allow":
        return
    fields = servable_schema.properties(model)
    for name in options:
        if name not in fields:
            raise InvalidOption(f"There is no option {name!r}.", field=name, hint=f"Options are {', '.join(fields)}.")


def _build_value_of(
    model: type[BaseModel], options: Mapping[str, Any], main: str, picture: Any
) -> BaseModel | FoveaError:
    """The request of one picture of several; an error that lies in the picture stays with it."""
    if isinstance(picture, FoveaError):  # it could not be fetched
        picture.field = main
        return picture
    try:
        return _validate(model, {**options, main: picture})
    except FoveaError as error:
        if error.field != main:
            raise
        return error


def _validate(model: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    for name in servable_schema.blob_fields(model):
        if is_url(values.get(name)):
            hint = "Send the picture itself: base64 in JSON, a multipart file or a raw body."
            raise InvalidOption(f"{name} is a URL, and pictures are not fetched here.", field=name, hint=hint)
    try:
        request = model.model_validate(values)
    except ValidationError as error:
        raise _first_error(list_errors(error)) from error
    for name in servable_schema.blob_fields(model):
        if getattr(request, name, None) == b"":
            raise Malformed(f"{name} is empty.", field=name)
    return request


def is_url(value: object) -> TypeGuard[str]:
    """Whether a value is a URL of a picture instead of its bytes."""
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def _first_error(errors: Sequence[Any]) -> FoveaError:
    first, more = errors[0], len(errors) - 1
    where = ".".join(str(part) for part in first["loc"]) or "body"
    rest = f" ({more} more)" if more else ""
    kind = Malformed if first["type"] == "base64" else InvalidOption
    return kind(f"{where}: {first['msg']}{rest}.", field=str(first["loc"][0]) if first["loc"] else where)
