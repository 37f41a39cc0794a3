"""A language model behind a real socket, whose every answer follows from its prompt: judges are tested against it."""

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx2

from services.relevance_judge.tests.fake_endpoint import FakeModel


class Oracle(FakeModel):
    """A language model whose every answer follows from the whole prompt, and from nothing else."""

    def __init__(self, say: Callable[[dict[str, Any]], str] | None = None) -> None:
        super().__init__(say or self._said)
        self.told: list[tuple[str, str]] = []
        self.heard: Callable[[], None] = lambda: None

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.heard()
        return super()._answer(request)

    def _said(self, body: dict[str, Any]) -> str:
        drawn = _drawn(body)
        answer = f"{drawn:016x}\n##final score: {drawn % 4}"
        self.told.append((json.dumps(body["messages"], ensure_ascii=False), answer))
        return answer

    def _chat(self, body: dict[str, Any]) -> httpx2.Response:
        drawn = _drawn(body)
        first = {token: -(drawn >> 4 * place) % 16 / 4 - 0.1 for place, token in enumerate("0123")}
        first |= {"Yes": -(drawn % 7) / 2 - 0.1, "No": -(drawn // 7 % 7) / 2 - 0.1}
        found = super()._chat(body).json()
        top = [{"token": token, "logprob": value} for token, value in first.items()]
        found["choices"][0]["logprobs"] = {"content": [{"token": "0", "logprob": first["0"], "top_logprobs": top}]}
        return httpx2.Response(200, json=found)

    def _tokenize(self, body: dict[str, Any]) -> httpx2.Response:
        text = body.get("prompt") or "\n".join(message["content"] for message in body["messages"])
        return httpx2.Response(200, json={"tokens": [zlib.crc32(word.encode()) for word in text.lower().split()]})


def _drawn(body: dict[str, Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[:7])
