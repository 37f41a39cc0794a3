"""What routes share: the adapter of the model that a request names, if it takes sessions or documents; marks."""

from typing import Annotated, TypeVar

from fastapi import Depends, Request

from fovea.api.replica import EFFECTFUL
from fovea.errors import InvalidOption
from fovea_memory.adapters.landmark import LandmarkAdapter
from fovea_memory.adapters.session import SessionAdapter
from fovea_memory.adapters.titans import TitansAdapter
from services.llm_longctx.api.model_lookup import find_served_model, resolve_model
from shared.serving.host import Host
from shared.serving.http.system_routes import host_of

OPENAI_ERRORS = {"x-error-form": "openai"}
EFFECTFUL_OPENAI = {**OPENAI_ERRORS, **EFFECTFUL}
HostDep = Annotated[Host, Depends(host_of)]

_Adapter = TypeVar("_Adapter", bound=SessionAdapter)


def find_session_adapter(host: Host, name: str | None, request: Request) -> TitansAdapter:
    """The adapter of a model by name; by default of the first model that takes sessions.

    Raises:
        InvalidOption: The model does not take sessions.
    """
    return _find_adapter(host, name, request, TitansAdapter, "session_id", "remembers nothing between requests")


def find_document_adapter(host: Host, name: str | None, request: Request) -> LandmarkAdapter:
    """The adapter of a model by name; by default of the first model that takes documents.

    Raises:
        InvalidOption: The model does not take documents.
    """
    return _find_adapter(host, name, request, LandmarkAdapter, "document_id", "reads no documents")


def _find_adapter(
    host: Host, name: str | None, request: Request, kind: type[_Adapter], field: str, lack: str
) -> _Adapter:
    chat = host.tasks().get("chat", [])
    able = [known for known in chat if field in getattr(host.servable_type(known), "takes", ())]
    resolved = resolve_model(host, name if name or not able else able[0])
    if resolved in able:
        adapter = find_served_model(host, resolved, request).adapter
        if isinstance(adapter, kind):
            return adapter
    hint = f"Models that do: {', '.join(able) or 'none is served'}."
    raise InvalidOption(f"The model {resolved!r} {lack}.", hint=hint, field="model")
