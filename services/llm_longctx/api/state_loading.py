"""State loading: request fields that plug-ins read, and what they load for a request.

A plug-in's entry in the group `fovea.adapters` has the name of the request field that it reads, such as `session_id`.
"""

from typing import Any, Protocol

from fastapi import FastAPI, Request

from fovea import plugins
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from services.llm_longctx.serving.adapters.base import RequestState
from services.llm_longctx.serving.request_extension import find_unread_fields
from shared.serving.host import Host

GROUP = "fovea.adapters"


class StateLoader(Protocol):
    """Loads what one request field names; the value of an entry point in the group `fovea.adapters`."""

    async def load(self, body: GenerationOptions, request: Request, host: Host) -> RequestState | str:
        """Load the state with which the request begins; or return the answer (JSON) that the same request got before.

        Raises NotFound: the caller has nothing of that name; InvalidOption: the model can't continue it.
        """
        ...


async def load_state(body: GenerationOptions, request: Request, host: Host) -> RequestState | str | None:
    """Load what the request continues, if it names something; or return the answer (JSON) that it got before.

    Raises InvalidOption: it names two things to continue.
    """
    fields = dict.fromkeys(point.name for point in plugins.entries(GROUP))
    named = [field for field in fields if getattr(body, field, None) is not None]
    if not named:
        return None
    if len(named) > 1:
        detail = f"A request continues one thing only, and this one names {' and '.join(named)}."
        raise InvalidOption(detail, hint="Leave one of them out.", field=named[0])
    loader: StateLoader = plugins.load_all(GROUP, named[0])[named[0]]
    return await loader.load(body, request, host)


def hide_missing_fields(app: FastAPI) -> None:
    """Leave the fields that no installed plug-in reads out of the OpenAPI document."""
    unread, describe = find_unread_fields(), app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        for schema in document.get("components", {}).get("schemas", {}).values():
            for field in set(unread).difference(schema.get("required", ())):  # those of answers are required
                schema.get("properties", {}).pop(field, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document
