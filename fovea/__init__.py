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
    FoveaError: base class of all errors that a client raises; the classes are those of `shared.errors`.
    ModelEntry: one served model, from `client.models()`.
    ModelCard: everything about one model, from `client.model(name)`.
    MethodCard: one attention method of a served language model.
    SegmentOut: answer of `client.segment(…)`.
    ChatAnswer: answer of `client.chat(…)`.
    ChatPiece: one event of `client.chat_stream(…)`.
    Job: state of a queued request, from `client.jobs`.
    JobResult: answer of a finished job, from `client.jobs.result(id)`.
"""

from __future__ import annotations

from fovea.async_client import AsyncClient
from fovea.chat import ChatAnswer, ChatPiece
from fovea.client import Client
from fovea.results import JobResult, MethodCard, ModelCard
from fovea.retry import RetryPolicy
from shared.api.job import Job
from shared.api.mask import SegmentOut
from shared.api.model import ModelEntry
from shared.errors import FoveaError

__all__ = [
    "AsyncClient",
    "ChatAnswer",
    "ChatPiece",
    "Client",
    "FoveaError",
    "Job",
    "JobResult",
    "MethodCard",
    "ModelCard",
    "ModelEntry",
    "RetryPolicy",
    "SegmentOut",
]
