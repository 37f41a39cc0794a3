"""What is asked of the engine, and how it answers: token ids in, tokens out through a sink.

Knows nothing about text, templates, models or scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.stream import Stream
from shared.errors import Cancelled, FoveaError
from shared.registry import CallContext

__all__ = ["Choice", "Facts", "FinishReason", "Grammar", "Order", "Sampling", "Sink", "Token"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_p: The smallest set of likeliest tokens that holds this much probability.
        top_k: So many likeliest tokens; 0 means all.
        min_p: Tokens with at least this share of the likeliest one's probability.
        seed: Makes the draws repeatable, whatever else is in the batch; None draws afresh.
        presence_penalty: Taken once from the logit of each token that was produced.
        frequency_penalty: Taken for each time that it was produced.
        repetition_penalty: Divides positive, multiplies negative logits of tokens in prompt and answer.
        logit_bias: Added to logits, by token id.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """One token with its log-probability under the model (nats, before temperature and penalties), where asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sink(Protocol):
    """Takes one answer. Called on the engine's thread, so it must be quick."""

    def prompt(self, tokens: Sequence[Token]) -> None:
        """A stretch of the prompt with log-probabilities, in order; only where they were asked for."""
        ...

    def token(self, token: Token) -> bool:
        """The next token; True ends the answer here."""
        ...

    def end(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """The answer is over after `produced` tokens, an end token included. The last call."""
        ...


class Grammar(Protocol):
    """What an answer may say. One per answer: it remembers what was said."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next; end tokens where the answer may be over."""
        ...

    def advance(self, token: int) -> None:
        """This token came."""
        ...

    @property
    def closing(self) -> Sequence[int]:
        """Tokens of which one must come, where nothing else may; empty otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a prompt, and what it may say if not everything."""

    sampling: Sampling
    sink: Sink
    grammar: Grammar | None = None


@dataclass(slots=True)
class Facts:
    """What an order cost; filled in while it is served.

    Attributes:
        kv_bytes: Most bytes of pages that its answers held at the end of one.
        kv_bytes_dense: What dense answers of these lengths would hold.
        prefill_density: Share of causal pairs or blocks that was read, mean over layers; 1 for dense reading.
        full_steps: Decode steps that looked at everything, where the method skips.
        cached_tokens: Tokens of the prompt that came from the prefix cache.
        fallback: Why dense was served instead of the method asked for, or None.
        preempted: How often an answer lost its pages and was read again.
    """

    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    prefill_density: float = 1.0
    full_steps: int = 0
    cached_tokens: int = 0
    fallback: str | None = None
    preempted: int = 0


@dataclass(eq=False, slots=True)
class Order:
    """A prompt and the answers wanted.

    Attributes:
        ids: The prompt.
        choices: Answers that share its prefill.
        max_tokens: Longest answer; 0 only reads the prompt.
        policy: The method at work; None takes the engine's.
        wanted: The method that was asked for, where another is at work in its place.
        boundaries: Chunk borders for methods that would predict them.
        ends: Token ids that end an answer and are not part of it.
        top: Log-probabilities of so many likeliest tokens beside the chosen one's; None computes none.
        score_prompt: Whether the prompt's own log-probabilities are told.
        score_from: With `score_prompt`: tokens before this one are not scored, so that they may come from the cache.
        priority: Higher classes are admitted first.
        run: Deadline and cancellation.
        opens: Opens the session that reads it, for models whose requests have one each; called when its turn comes.
        keeps: Is given that session at the end of an answer, and the last token drawn, which it has not read.
        most_bytes: Bytes that such a session may come to.
        dropped: Set when nobody reads the answer any more.
        facts: What it cost.
    """

    ids: Sequence[int]
    choices: Sequence[Choice]
    max_tokens: int
    policy: Policy | None = None
    wanted: Policy | None = None
    boundaries: Sequence[int] | None = None
    ends: frozenset[int] = frozenset()
    top: int | None = None
    score_prompt: bool = False
    score_from: int = 0
    priority: int = 0
    run: CallContext = field(default_factory=CallContext)
    opens: Callable[[], Stream] | None = None
    keeps: Callable[[Stream, Sequence[int]], None] | None = None
    most_bytes: int = 0
    dropped: bool = False
    facts: Facts = field(default_factory=Facts)

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Cancelled: The caller went away.
            DeadlineExceeded: The deadline has passed.
        """
        if self.dropped:
            detail = "The request was dropped."
            raise Cancelled(detail)
        self.run.check()
