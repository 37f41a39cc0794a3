"""Requests of tests: run until all have ended, with one listener for each answer."""

from collections.abc import Sequence
from typing import Any

from services.llm_longctx.engine import RequestHooks


def drain(scheduler, *requests) -> None:
    for one in requests:
        scheduler.add_request(one)
    while scheduler.in_flight:
        scheduler.step()


def serve(engine, request):
    """The completion of one request behind those that were served before."""
    output = engine.add_request(request)
    drain(engine.scheduler)
    return output.completion()


class Listeners(RequestHooks):
    """Passes what comes of each answer to a listener of its own; a listener may lack what no test looks at."""

    def __init__(self, *listeners: Any, grammars: Sequence[Any] = ()) -> None:
        self.listeners = listeners
        self._grammars = grammars

    def open_grammar(self, answer):
        return self._grammars[answer] if self._grammars else None

    def on_prompt(self, answer, tokens):
        self.listeners[answer].on_prompt(tokens)

    def on_capture(self, answer, captured):
        self.listeners[answer].on_capture(captured)

    def on_token(self, answer, token):
        return self.listeners[answer].on_token(token)

    def on_finish(self, answer, reason, produced):
        self.listeners[answer].on_finish(reason, produced)
