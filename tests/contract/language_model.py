"""A language model behind a real socket, answering by rules: judges are tested against it as against any other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2

from services.relevance_judge.tests.fake_endpoint import FakeModel

ODDS = {"Yes": -0.4, "No": -1.4, "0": -3.0, "1": -2.0, "2": -0.5, "3": -1.5}
"""Log-probabilities of the first token of every answer."""


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """Base URL of a model that always grades 2."""
    model = FakeModel(first=ODDS)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = model._answer(httpx2.Request("POST", f"http://model.test{self.path}", content=body))
            self.send_response(answer.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
