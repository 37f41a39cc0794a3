"""Error rendering for HTTP: problem+json everywhere, except where a protocol demands its own form.

A route asks for it with `openapi_extra={"x-error-form": "openai"}`; the protocols' own paths are known here.
"""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi._compat.v2 import ModelField, _regenerate_error_with_loc
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from fovea.errors import Cancelled, FoveaError, InvalidOption, Malformed, MethodNotAllowed, NotFound, by_status
from shared import telemetry
from shared.asgi.body import SlowBody
from shared.asgi.errors import ErrorForm, build_error_headers, render_error
from shared.serving.http.errors import NotAcceptable, to_safe_error
from shared.validation_errors import list_errors

_FORMS: Mapping[str, ErrorForm] = {
    "/v2": "oip", "/v1/messages": "anthropic", "/v1/chat/": "openai", "/v1/completions": "openai",
    "/v1/embeddings": "openai", "/v1/models": "openai", "/v1/responses": "openai",
}  # fmt: skip
"""Path prefix → form, for requests that match no route."""

# Pydantic's names of the forms that a value may have, in the place of a field: `str`, `constrained-str`, `list[float]`
_FORM = re.compile(r"^(?:str|int|float|bool)$|^constrained-|^\w+\[.*\]$")

_BY_STATUS: Mapping[int, type[FoveaError]] = {405: MethodNotAllowed, 406: NotAcceptable, 408: SlowBody}


def translate(error: BaseException) -> FoveaError:
    """The FoveaError for anything that a route or the framework raised."""
    if isinstance(error, RequestValidationError):
        return _validation_error(_find_cause(error.errors()))
    if isinstance(error, HTTPException):
        return _http_error(error)
    if isinstance(error, ClientDisconnect):
        return Cancelled("The caller went away.")
    return to_safe_error(error, "The service")


def render(scope: MutableMapping[str, Any], error: FoveaError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the response that callers of this route expect, with `Retry-After` where it helps.

    Leaves the error's code in `scope["fovea.error"]`, for the metrics.
    """
    scope["fovea.error"] = error.code
    status, content_type, body = render_error(error, _form(scope), telemetry.context().request_id)
    found = {name.decode(): value.decode() for name, value in build_error_headers(error)}
    return Response(body, status, {**found, **(headers or {})}, content_type)


def _form(scope: Mapping[str, Any]) -> ErrorForm:
    stated: ErrorForm | None = (getattr(scope.get("route"), "openapi_extra", None) or {}).get("x-error-form")
    known: ErrorForm = next((form for prefix, form in _FORMS.items() if scope["path"].startswith(prefix)), "problem")
    return stated or known


def _find_cause(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first error; of a value that may have several forms, that of the form which fits furthest."""
    first = errors[0]
    *before, last = first["loc"]
    if not _is_form(last):
        return first
    same = [one for one in errors if list(one["loc"][: len(before)]) == before]
    deepest = max(same, key=lambda one: len(one["loc"]))
    return deepest if len(deepest["loc"]) > len(first["loc"]) else first


def _is_form(part: str | int) -> bool:
    return isinstance(part, str) and _FORM.search(part) is not None


def _validation_error(first: Mapping[str, Any]) -> FoveaError:
    if first["type"] == "json_invalid":
        return Malformed(f"The body is not JSON: {first.get('ctx', {}).get('error', 'it does not parse')}.")
    where = ".".join(str(part) for part in first["loc"][1:] if not _is_form(part)) or str(first["loc"][0])
    return InvalidOption(f"{where}: {first['msg']}.", field=where)


def _http_error(error: HTTPException) -> FoveaError:
    if error.status_code == 404 and error.detail == HTTPStatus(404).phrase:
        return NotFound("There is no such route here.", hint="GET /openapi.json lists the routes.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        return MethodNotAllowed("This route does not take that method.", hint=f"It takes {allowed}.")
    kind = _BY_STATUS.get(error.status_code) or by_status(error.status_code)
    found: FoveaError = kind(str(error.detail))
    return found


def bound_validation() -> None:
    """Have FastAPI list few errors of a body, in this whole process, where it makes a dictionary of each one."""
    patched: Any = ModelField
    patched.validate = _validate


def _validate(
    self: ModelField, value: Any, _values: dict[str, Any] | None = None, *, loc: tuple[int | str, ...] = ()
) -> tuple[Any, list[dict[str, Any]]]:
    try:
        return self._type_adapter.validate_python(value, from_attributes=True), []
    except ValidationError as error:
        return None, _regenerate_error_with_loc(errors=list_errors(error), loc_prefix=loc)
