"""State loading: request fields that plug-ins read, and what they load for a request.

A plug-in's entry in the group `fovea.adapters` has the name of the request field that it reads, such as `session_id`.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import FastAPI, Request

from fovea import plugins
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption, NotFound
from services.llm_longctx.serving.request_state import RequestState
from shared.serving.host import Host

GROUP = "fovea.adapters"


class StateLoader(Protocol):
    """Loads what one request field names; the value of an entry point in the group `fovea.adapters`."""

    async def load(self, body: GenerationOptions, request: Request, host: Host) -> RequestState | str:
        """Load the state with which the request begins; or return the answer (JSON) that the same request got before.

        Raises:
            NotFound: The caller has nothing of that name.
            InvalidOption: The model can't continue it.
        """
        ...


async def load_state(body: GenerationOptions, request: Request, host: Host) -> RequestState | str | None:
    """Load what the request continues, if it names something; or return the answer (JSON) that it got before.

    Raises:
        InvalidOption: It names two things to continue.
        NotFound: The plug-in that reads the field is not installed.
    """
    loaders: dict[str, StateLoader] = plugins.load_all(GROUP)
    named = [field for field in _list_fields(loaders) if getattr(body, field, None) is not None]
    if not named:
        return None
    if len(named) > 1:
        detail = f"A request continues one thing only, and this one names {' and '.join(named)}."
        raise InvalidOption(detail, hint="Leave one of them out.", field=named[0])
    (field,) = named
    if field not in loaders:
        missing = plugins.explain_missing("fields", field, f"The field {field!r}", field)
        raise missing or NotFound(f"No plug-in reads the field {field!r}.", field=field)
    return await loaders[field].load(body, request, host)


def hide_missing_fields(app: FastAPI) -> None:
    """Leave the fields that no installed plug-in reads out of the OpenAPI document."""
    loaders, describe = plugins.load_all(GROUP), app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        for schema in document.get("components", {}).get("schemas", {}).values():
            for field in set(_list_fields(loaders)) - set(loaders):
                schema.get("properties", {}).pop(field, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _list_fields(loaders: dict[str, StateLoader]) -> list[str]:
    """All request fields that some plug-in reads, installed or not."""
    return sorted({*loaders, *plugins.list_known("fields")})
