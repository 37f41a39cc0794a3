"""Finds the language model that a request names, ready and able to do what the request needs. Knows the host."""

from __future__ import annotations

from fastapi import Request

from services.llm_longctx.api.errors import ModelNotFound
from services.llm_longctx.serving.text_model import TextModel
from shared.errors import InvalidOption, NotFound
from shared.serving.host import Host

__all__ = ["model_of"]


def model_of(
    host: Host, name: str | None, request: Request, *, remembers: bool = False, cites: bool = False
) -> TextModel:
    """The language model of that name, ready; left out, the first that can.

    Args:
        host: The host.
        name: What the request says.
        request: Learns the model's name, for the metrics.
        remembers: Whether it must take sessions.
        cites: Whether it must take documents.

    Raises:
        ModelNotFound: There is none.
        InvalidOption: It can't do that.
        NotReady: It is not loaded.
    """
    able = [known for known in host.tasks().get("chat", []) if _can(host, known, remembers=remembers, cites=cites)]
    try:
        resolved = host.resolve(name if name or not able else able[0], "chat")
    except NotFound as error:
        raise ModelNotFound(error.detail, hint=error.hint, field="model") from error
    if resolved not in able:
        what = "remembers nothing between requests" if remembers else "reads no documents"
        hint = f"Models that do: {', '.join(able) or 'none is served'}."
        raise InvalidOption(f"The model {resolved!r} {what}.", hint=hint, field="model")
    request.scope["fovea.model"] = resolved
    servable = host.servable(resolved)
    assert isinstance(servable, TextModel)  # noqa: S101  # this service serves nothing else under chat
    return servable


def _can(host: Host, name: str, *, remembers: bool, cites: bool) -> bool:
    kind = host.servable_type(name)
    return (not remembers or getattr(kind, "remembers", False)) and (not cites or getattr(kind, "cites", False))
