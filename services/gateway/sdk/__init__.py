"""The client library and the `fovea` command. Knows the gateway's HTTP surface; knows no model and no server.

from services.gateway.sdk import Client

with Client("http://127.0.0.1:8080") as client:
    answer = client.segment("polyp.jpg", threshold=0.4, include=["mask", "overlay"])
    for piece in client.chat_stream("What is attention?"):
        print(piece.text, end="")
"""

from __future__ import annotations

from services.gateway.sdk.aclient import AsyncClient
from services.gateway.sdk.answers import JobResult, ModelCard
from services.gateway.sdk.chat import ChatAnswer, ChatPiece
from services.gateway.sdk.client import Client
from services.gateway.sdk.patience import Patience

__all__ = ["AsyncClient", "ChatAnswer", "ChatPiece", "Client", "JobResult", "ModelCard", "Patience"]
