"""What a program asks of an engine, and what it gets: token ids in, tokens and usage out.

The small form of an order, for scripts, benches and tests. Knows nothing about text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.order import Choice, Facts, FinishReason, Order, Sampling, Token
from services.llm_longctx.methods import AttentionMethod
from shared.errors import FoveaError, InvalidOption
from shared.lm.head_plan import HeadPlan
from shared.registry import CallContext

if TYPE_CHECKING:
    from services.llm_longctx.engine.llm_engine import Engine

__all__ = ["Completion", "Request", "Usage"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to go on with.

    Attributes:
        ids: The prompt, one token or more.
        method: Name or method; None takes the engine's.
        plan: Head plan; None takes the engine's.
        max_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.
        top_p, top_k, min_p, seed: As in `Sampling`.
        ends: Token ids that end the answer and are not part of it.
        priority: Higher classes are admitted first.
        run: Deadline and cancellation.
    """

    ids: Sequence[int]
    method: str | AttentionMethod | None = None
    plan: HeadPlan | Mapping[str, Any] | None = None
    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    ends: frozenset[int] = frozenset()
    priority: int = 0
    run: CallContext | None = None

    def order(self, engine: Engine) -> tuple[Order, Collected]:
        """What the scheduler understands, and where the answer gathers.

        Raises:
            InvalidOption: There is no prompt, a token is unknown, or the method can't work.
        """
        vocab = engine.model.config.vocab
        if not len(self.ids) or not all(0 <= i < vocab for i in self.ids):
            detail = f"A prompt needs tokens below {vocab}."
            raise InvalidOption(detail, field="ids")
        sampling = Sampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, seed=self.seed
        )
        policy = engine.policy_of(self.method, self.plan)
        sink = Collected()
        order = Order(
            [int(i) for i in self.ids],
            [Choice(sampling, sink)],
            self.max_tokens,
            policy=policy,
            ends=self.ends,
            priority=self.priority,
            run=self.run or CallContext(),
        )
        sink.usage = Usage(order, policy, engine.backend)
        return order, sink


@dataclass(eq=False, slots=True)
class Usage:
    """What an answer cost; `prompt_tokens`, `completion_tokens` and the order's facts."""

    order: Order
    policy: Policy
    backend: str
    completion_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens read."""
        return len(self.order.ids)

    @property
    def kv_ratio(self) -> float:
        """Bytes held, of those that a dense answer would hold."""
        return self.kv_bytes / self.kv_bytes_dense if self.kv_bytes_dense else 1.0

    @property
    def method(self) -> str:
        """Name of the method that served."""
        return self.policy.method.name

    @property
    def knobs(self) -> dict[str, Any]:
        """Its knobs."""
        return self.policy.method.model_dump(mode="json")

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "order").facts, name)

    def facts(self) -> dict[str, Any]:
        """All of it by name, as on the wire."""
        own = {name: getattr(self, name) for name in ("method", "knobs", "kv_ratio", "backend")}
        return own | {name: getattr(self.order.facts, name) for name in Facts.__slots__}


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its tokens, why it ended (an error if it failed), and what it cost."""

    tokens: list[int]
    usage: Usage
    reason: FinishReason | FoveaError


@dataclass(eq=False, slots=True)
class Collected:
    """A sink that gathers an answer."""

    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | FoveaError | None = None
    usage: Usage | None = None

    def prompt(self, tokens: Sequence[Token]) -> None:
        """Nobody asked for these."""

    def token(self, token: Token) -> bool:
        """One more token."""
        self.tokens.append(token.id)
        return False

    def end(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """The answer is over."""
        if self.reason is None and self.usage is not None:
            self.reason, self.usage.completion_tokens = reason, produced

    def completion(self) -> Completion:
        """The answer.

        Raises:
            FoveaError: It failed.
        """
        assert self.usage is not None  # noqa: S101  # set where the order is made
        assert self.reason is not None  # noqa: S101  # the scheduler ends every answer
        if isinstance(self.reason, FoveaError):
            raise self.reason
        return Completion(self.tokens, self.usage, self.reason)
