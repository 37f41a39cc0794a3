"""Model lookup: the language model that a request names, ready and able to serve it. Knows the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fastapi import Request

from services.llm_longctx.api.errors import ModelNotFound
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.adapters.landmark import LandmarkAdapter
from services.llm_longctx.serving.adapters.titans import TitansAdapter
from services.llm_longctx.serving.text_model import TextModel
from shared.errors import InvalidOption, NotFound
from shared.serving.host import Host

_Adapter = TypeVar("_Adapter", bound=TextModelAdapter)


def find_model(host: Host, name: str | None, request: Request) -> TextModel:
    """The language model of that name, by default the first; the request learns its name, for the metrics.

    Raises:
        ModelNotFound: There is none.
        NotReady: It is not loaded.
    """
    resolved = _resolve(host, name)
    request.scope["fovea.model"] = resolved
    servable = host.servable(resolved)
    if not isinstance(servable, TextModel):
        message = f"{resolved} is served for chat, but is no TextModel"
        raise TypeError(message)
    return servable


def find_session_adapter(host: Host, name: str | None, request: Request) -> TitansAdapter:
    """As `find_model`, among the models that take sessions.

    Raises:
        InvalidOption: The model takes none.
    """
    able = [known for known in _chat_models(host) if getattr(host.servable_type(known), "takes_sessions", False)]
    return _find_adapter(host, name, request, TitansAdapter, able, "remembers nothing between requests")


def find_document_adapter(host: Host, name: str | None, request: Request) -> LandmarkAdapter:
    """As `find_model`, among the models that take documents.

    Raises:
        InvalidOption: The model takes none.
    """
    able = [known for known in _chat_models(host) if getattr(host.servable_type(known), "takes_documents", False)]
    return _find_adapter(host, name, request, LandmarkAdapter, able, "reads no documents")


def _find_adapter(
    host: Host, name: str | None, request: Request, kind: type[_Adapter], able: Sequence[str], lack: str
) -> _Adapter:
    resolved = _resolve(host, name if name or not able else able[0])
    if resolved in able:
        adapter = find_model(host, resolved, request).adapter
        if isinstance(adapter, kind):
            return adapter
    hint = f"Models that do: {', '.join(able) or 'none is served'}."
    raise InvalidOption(f"The model {resolved!r} {lack}.", hint=hint, field="model")


def _chat_models(host: Host) -> Sequence[str]:
    return host.tasks().get("chat", [])


def _resolve(host: Host, name: str | None) -> str:
    try:
        return host.resolve(name, "chat")
    except NotFound as error:
        raise ModelNotFound(error.detail, hint=error.hint, field="model") from error
