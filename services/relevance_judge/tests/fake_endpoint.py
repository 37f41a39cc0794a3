"""A language model's endpoint for tests: answers by rules, remembers what it was asked, and talks no network."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from services.relevance_judge.chat_client import ChatClient
from shared.registry import LoadContext

Say = Callable[[dict[str, Any]], str]


class FakeModel:
    """Speaks the OpenAI protocol with words as tokens; a prompt above `window` words does not fit."""

    def __init__(self, say: Say = lambda _: "2", *, first: dict[str, float] | None = None, window: int = 10_000):
        self.say, self.first, self.window = say, first, window
        self.asked: list[dict[str, Any]] = []
        self.too_long: dict[str, Any] = {"message": "too long", "code": "context_length_exceeded"}
        self._vocabulary: dict[str, int] = {}
        self._lock = threading.Lock()

    def client(self) -> ChatClient:
        return ChatClient("http://model.test", transport=httpx2.MockTransport(self._answer))

    def serve(self) -> ThreadingHTTPServer:
        """A server of this model on a free port, running on a thread; shut it down when done."""
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply("GET", b"")

            def do_POST(self) -> None:
                self._reply("POST", self.rfile.read(int(self.headers["content-length"])))

            def _reply(self, verb: str, body: bytes) -> None:
                found = answer(httpx2.Request(verb, f"http://model.test{self.path}", content=body))
                self.send_response(found.status_code)
                self.send_header("content-length", str(len(found.content)))
                self.end_headers()
                self.wfile.write(found.content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, json={"object": "list", "data": [{"id": "fake"}, {"id": "other"}]})
        body = json.loads(request.content)
        with self._lock:
            self.asked.append(body)
        rule = {"/v1/chat/completions": self._chat, "/tokenize": self._tokenize, "/v1/completions": self._score}
        try:
            return rule[request.url.path](body)
        except RuntimeError:  # a rule that raises it plays an endpoint that breaks
            return httpx2.Response(500, json={"error": {"message": "broken"}})

    def _chat(self, body: dict[str, Any]) -> httpx2.Response:
        if sum(len(m["content"].split()) for m in body["messages"]) > self.window:
            return httpx2.Response(400, json={"error": self.too_long})
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.say(body)}}
        if body.get("logprobs") and self.first is not None:
            top = [{"token": token, "logprob": value} for token, value in self.first.items()]
            choice["logprobs"] = {"content": [{"token": "x", "logprob": 0, "top_logprobs": top}]}
        return httpx2.Response(200, json={"model": "fake", "choices": [choice], "usage": {"total_tokens": 7}})

    def _tokenize(self, body: dict[str, Any]) -> httpx2.Response:
        text = body["prompt"] if "prompt" in body else "\n".join(m["content"] for m in body["messages"])
        with self._lock:
            ids = [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in text.lower().split()]
        return httpx2.Response(200, json={"tokens": ids, "count": len(ids)})

    def _score(self, body: dict[str, Any]) -> httpx2.Response:
        ids = body["prompt"]
        told = [None] + [-1.0 if ids[place] in ids[:place] else -5.0 for place in range(1, len(ids))]
        choice = {"text": "", "logprobs": {"token_logprobs": told}}
        return httpx2.Response(200, json={"model": "fake", "choices": [choice]})


def answered_by(model: FakeModel, kind: type[Any]) -> type[Any]:
    class Answering(kind):  # type: ignore[misc]  # a class made at run time
        card = kind.card

        @classmethod
        def load(cls, place: LoadContext) -> Any:
            return cls(model.client(), place.objects)

    return Answering
