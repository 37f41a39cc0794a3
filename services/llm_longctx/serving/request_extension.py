"""Request extensions: parts of plug-ins in a chat or completion, between the protocol and the engine.

An entry in the group `fovea.extensions` has the name of a request field, such as `capture`; its value is a subclass of
`RequestExtension`. A class that is named for several fields is made once per request.
"""

from collections.abc import Sequence
from typing import Any

from fovea import plugins
from fovea.api.interventions import Captured
from fovea.api.text import GenerationOptions
from services.llm_longctx.engine import GenerationRequest, RequestHooks
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.answer_text import OutputChunk
from shared.registry import CallContext

GROUP = "fovea.extensions"

READERS = ("fovea.adapters", GROUP)
"""Entry-point groups whose names are the request fields that plug-ins read."""


class RequestExtension:
    """Part of a plug-in in one request that has its field. A subclass overrides what it needs.

    It is made on the event loop before anything is read, and may refuse the request there.

    Attributes:
        recorder: Receives logits and tokens of the first answer, or None.
    """

    recorder: RequestHooks | None = None

    def __init__(self, adapter: TextModelAdapter, request: GenerationOptions, run: CallContext) -> None:
        """Take part in a request to the model of an adapter.

        Raises InvalidOption: the model can't do that; PermissionDenied: the caller's key does not allow it.
        """

    def vary(self, request: Any) -> list[Any]:
        """The requests that are answered in place of the given one."""
        return [request]

    def extend(self, request: GenerationRequest) -> None:
        """Add to an engine request before it begins. May block.

        Raises InvalidOption: it can't be served; NotFound: it names something that does not exist.
        """

    def capture(self, piece: OutputChunk) -> list[Captured]:
        """Captures in the protocol's form; asked for pieces that have some, and at the end of an answer. May block."""
        return []

    async def finish(self, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
        """Fields of the last chunk, once all requests are answered.

        Raises FoveaError: they can't be found: cancelled, too late, or too large.
        """
        return {}


def open_extensions(adapter: TextModelAdapter, request: GenerationOptions, run: CallContext) -> list[RequestExtension]:
    """Make the extensions that a request asks for.

    Raises NotFound: the plug-in that reads one of its fields is not installed; FoveaError: one of them refuses the
    request.
    """
    asked = {field for field in type(request).model_fields if getattr(request, field) not in (None, [])}
    for field in asked.intersection(find_unread_fields()):
        missing = plugins.explain_missing("fields", field, f"The field {field!r}", field)
        if missing is not None:
            raise missing
    named = dict.fromkeys(kind for field in sorted(asked) for kind in plugins.load_all(GROUP, field).values())
    return [kind(adapter, request, run) for kind in named]


def find_unread_fields() -> list[str]:
    """Request fields of the known plug-ins that no installed one reads, in order."""
    read = {point.name for group in READERS for point in plugins.entries(group)}
    return [field for field in plugins.list_known("fields") if field not in read]
