"""A sequence in flight: its cache, the token it is fed next, and what it has produced.

Knows its request's rules (end tokens, longest answer, log-probabilities); knows nothing about other sequences.
"""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass

from torch import Tensor

from services.llm_longctx.engine.request import Choice, FinishReason, Request
from services.llm_longctx.engine.sampler import Sampler
from shared.errors import FoveaError
from shared.lm.cache import KVCache

__all__ = ["Prefill", "Sequence"]


@dataclass(eq=False, slots=True)
class Prefill:
    """A request whose prompt is not read yet, or not to its end.

    Attributes:
        request: What was asked.
        context: The caller's context, so that metrics carry its service and model.
        since: When it came (`time.perf_counter`), then when its prefill began.
        cache: Set on admission.
    """

    request: Request
    context: Context
    since: float
    cache: KVCache | None = None

    def end(self, reason: FinishReason | FoveaError) -> None:
        """Tell all its answers that they are over before they began."""
        for choice in self.request.choices:
            choice.sink.end(reason, 0)


class Sequence:
    """One answer being produced."""

    def __init__(self, prefill: Prefill, choice: Choice, cache: KVCache, vocab: int, since: float) -> None:
        self.request = prefill.request
        self.context = prefill.context
        self.cache = cache
        self.since = since
        self.fed = -1
        self._sink = choice.sink
        self._sampler = Sampler(choice.sampling, prefill.request.ids, vocab)
        self._produced = 0

    def advance(self, logits: Tensor) -> bool:
        """Draw the next token from logits [V] and hand it on; True when the answer is over."""
        if self.request.max_tokens == 0:
            return self.end("length")
        token = self._sampler.draw(logits, self.request.top)
        self._produced += 1
        self.fed = token.id
        if token.id in self.request.ends or self._sink.token(token):
            return self.end("stop")
        return self._produced >= self.request.max_tokens and self.end("length")

    def end(self, reason: FinishReason | FoveaError) -> bool:
        """Tell the sink that this is all."""
        self._sink.end(reason, self._produced)
        return True
