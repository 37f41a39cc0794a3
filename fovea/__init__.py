"""The client library and the `fovea` command. Knows the gateway's HTTP surface; knows no model and no server.

from fovea import Client

with Client("http://127.0.0.1:8080") as client:
    answer = client.segment("polyp.jpg", threshold=0.4, include=["mask", "overlay"])
    for piece in client.chat_stream("What is attention?"):
        print(piece.text, end="")
"""

from __future__ import annotations

from fovea.async_client import AsyncClient
from fovea.chat import ChatAnswer, ChatPiece
from fovea.client import Client
from fovea.results import JobResult, ModelCard
from fovea.retry import RetryPolicy

__all__ = ["AsyncClient", "ChatAnswer", "ChatPiece", "Client", "JobResult", "ModelCard", "RetryPolicy"]
