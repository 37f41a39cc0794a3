"""Model lookup: the language model that a request names, ready to serve it. Knows the host."""

import asyncio

from fastapi import Request

from fovea.errors import NotFound
from services.llm_longctx.api.errors import ModelNotFound
from services.llm_longctx.serving.text_model import TextModel
from shared.serving.host import Host
from shared.serving.http.tenant import get_tenant


async def find_model(host: Host, name: str | None, request: Request) -> TextModel:
    """The language model of that name, or the one that the caller's adapter of that name adapts; by default the first.

    The request learns the model's own name, for the metrics. Raises ModelNotFound: there is none; NotReady: it is not
    loaded.
    """
    try:
        return find_served_model(host, name, request)
    except ModelNotFound:
        base = None if name is None else await asyncio.to_thread(host.find_variant, name, get_tenant(request))
        if base is None:
            raise
        return find_served_model(host, base, request)


def find_served_model(host: Host, name: str | None, request: Request) -> TextModel:
    """The language model of that name, without adapters; see `find_model`."""
    resolved = resolve_model(host, name)
    request.scope["fovea.model"] = resolved
    servable = host.servable(resolved)
    if not isinstance(servable, TextModel):
        raise TypeError(f"{resolved} is served for chat, but is not a TextModel")
    return servable


def resolve_model(host: Host, name: str | None, task: str | None = "chat") -> str:
    """The name of the model that a request means; of a task, or any. Raises ModelNotFound: There is none."""
    try:
        return host.resolve(name, task)
    except NotFound as error:
        raise ModelNotFound(error.detail, hint=error.hint, field="model") from error
