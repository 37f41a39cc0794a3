"""Orders that wait or are being read, and answers in flight: the token fed next and what was produced.

Knows an order's rules (end tokens, longest answer, log-probabilities); knows nothing about other orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from services.llm_longctx.engine.order import Choice, FinishReason, Order, Token
from services.llm_longctx.engine.sampler import Sampler
from shared.errors import FoveaError

__all__ = ["Answer", "Held", "S", "Waiting"]


class Held(Protocol):
    """What an answer holds while it is produced: pages, or a session."""

    def close(self) -> None:
        """Give it back."""
        ...


S = TypeVar("S", bound=Held)


class Answer(Generic[S]):
    """One answer being produced.

    Attributes:
        order: What was asked.
        context: The caller's context, so that metrics carry its service and model.
        number: Its order's place in the order of arrival.
        since: When its decoding began (`time.perf_counter`).
        sequence: What it holds, or None while it holds nothing.
        produced: Tokens drawn, an end token included.
    """

    def __init__(self, order: Order, context: Context, choice: Choice, number: int, vocab: int) -> None:
        self.order = order
        self.context = context
        self.number = number
        self.since = 0.0
        self.sequence: S | None = None
        self.produced: list[int] = []
        self._sink = choice.sink
        self._sampler = Sampler(choice.sampling, order.ids, vocab, choice.grammar)
        self._fed = 0

    @property
    def fed(self) -> int:
        """The token to be fed next."""
        return self.produced[self._fed]

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Hand on log-probabilities of the prompt."""
        self._sink.prompt(tokens)

    def advance(self, logits: Tensor) -> FinishReason | None:
        """Take the logits [V] after what was fed: draw the next token and hand it on; why the answer is over, if it is.

        After a preemption the tokens that were drawn already are fed again first.
        """
        if self.order.max_tokens == 0:
            return "length"
        if self._replays():
            return None
        token = self._sampler.draw(logits, self.order.top)
        self.produced.append(token.id)
        if token.id in self.order.ends or self._sink.token(token):
            return "stop"
        return "length" if len(self.produced) >= self.order.max_tokens else None

    def end(self, reason: FinishReason | FoveaError) -> bool:
        """Tell the sink that this is all, and give back what it held. Always true: it is over."""
        if self.sequence is not None:
            self.sequence.close()
        self._sink.end(reason, len(self.produced))
        return True

    def lose(self) -> None:
        """Give back what it holds; the answer will be read again from the prompt on."""
        if self.sequence is not None:
            self.sequence.close()
        self.sequence, self._fed = None, -1
        self.order.facts.preempted += 1

    def _replays(self) -> bool:
        if self.produced and self._fed < len(self.produced) - 1:
            self._fed += 1
            return True
        self._fed = len(self.produced)
        return False


@dataclass(eq=False, slots=True)
class Waiting(Generic[S]):
    """An order whose prompt is not read yet, or not to its end.

    Attributes:
        order: What was asked.
        context: The caller's context.
        since: When it came (`time.perf_counter`), then when its prefill began.
        answers: Answers that begin when the prompt is read: all of the order's, or one that was preempted.
        told: Tokens of the prompt whose log-probabilities were told already.
        sequence: Set on admission.
        last_try: Whether it had the pool for itself and did not fit.
    """

    order: Order
    context: Context
    since: float
    answers: list[Answer[S]]
    told: int = 0
    sequence: S | None = None
    last_try: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts by class, then by arrival."""
        return -self.order.priority, self.answers[0].number

    def end(self, reason: FinishReason | FoveaError) -> None:
        """Tell all answers that they are over."""
        self.lose()
        for answer in self.answers:
            answer.end(reason)

    def lose(self) -> None:
        """Give back what was read so far."""
        if self.sequence is not None:
            self.sequence.close()
            self.sequence = None
