"""Client library of the Fovea gateway; the `fovea` command is `fovea.cli`.

    import fovea

    with fovea.Client("http://127.0.0.1:8080") as client:
        answer = client.segment("polyp.jpg", threshold=0.4, include=["mask", "overlay"])
        for piece in client.chat_stream("What is attention?"):
            print(piece.text, end="")

Names:
    Client: synchronous client; safe to share between threads.
    AsyncClient: the same client for asyncio.
    RetryPolicy: how often a client sends a refused request again, and how long it waits between.
    FoveaError: base class of all errors that a client raises; the classes are those of `fovea.errors`.
    ModelEntry: one served model, from `client.models()`.
    ModelCard: everything about one model, from `client.model(name)`.
    MethodCard: one attention method of a served language model.
    SegmentOut: answer of `client.segment(…)`.
    ChatAnswer: answer of `client.chat(…)`.
    ChatPiece: one event of `client.chat_stream(…)`.
    Job: state of a queued request, from `client.jobs`.
    JobResult: answer of a finished job, from `client.jobs.result(id)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fovea.api.job import Job
    from fovea.api.mask import SegmentOut
    from fovea.api.model import ModelEntry
    from fovea.async_client import AsyncClient
    from fovea.chat import ChatAnswer, ChatPiece
    from fovea.client import Client
    from fovea.errors import FoveaError
    from fovea.results import JobResult, MethodCard, ModelCard
    from fovea.retry import RetryPolicy

_MODULES = {
    "fovea.api.job": ("Job",),
    "fovea.api.mask": ("SegmentOut",),
    "fovea.api.model": ("ModelEntry",),
    "fovea.async_client": ("AsyncClient",),
    "fovea.chat": ("ChatAnswer", "ChatPiece"),
    "fovea.client": ("Client",),
    "fovea.errors": ("FoveaError",),
    "fovea.results": ("JobResult", "MethodCard", "ModelCard"),
    "fovea.retry": ("RetryPolicy",),
}

__all__ = [
    "AsyncClient", "ChatAnswer", "ChatPiece", "Client", "FoveaError", "Job", "JobResult", "MethodCard", "ModelCard",
    "ModelEntry", "RetryPolicy", "SegmentOut",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for: services take schemas and errors from `fovea.api` and load no HTTP client."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'fovea' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value
