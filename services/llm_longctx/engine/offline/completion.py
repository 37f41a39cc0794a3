"""Offline requests: the small form of a generation request for scripts, benches and tests, and its gathered answer.

Knows token ids; knows nothing about text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest, RequestHooks, RequestStats
from services.llm_longctx.engine.requests.sampling import Sampling, ScoredToken
from services.llm_longctx.engine.taps import CapturedTokens, RequestTaps
from services.llm_longctx.kv_cache import CacheBits
from services.llm_longctx.methods import AttentionMethod
from shared.lm.head_plan import HeadPlan
from shared.lm.lora import LoraAdapter
from shared.registry import CallContext


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
        cache_bits: Format of older entries, or 16 for the decoder's own type; None takes the engine's.
        taps: Its edits and captures inside the model.
        adapter: Its LoRA adapter.
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
    cache_bits: CacheBits | Literal[16] | None = None
    taps: RequestTaps | None = None
    adapter: LoraAdapter | None = None


@dataclass(slots=True, kw_only=True)
class CompletionUsage(RequestStats):
    """Cost of an answer."""

    prompt_tokens: int
    completion_tokens: int
    method: str
    knobs: dict[str, Any]
    backend: str


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its tokens, why it ended, what it cost, and what was captured."""

    tokens: list[int]
    usage: CompletionUsage
    reason: FinishReason
    captured: list[CapturedTokens] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class TokenCollector(RequestHooks):
    """Gathers the tokens of one answer.

    Attributes:
        tokens: Tokens so far, without a stop token.
        reason: Why the answer ended, an error if it failed; None while it is produced.
        produced: Tokens drawn in the end, a stop token included.
        captured: Captures so far.
    """

    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | FoveaError | None = None
    produced: int = 0
    captured: list[CapturedTokens] = field(default_factory=list)

    def on_capture(self, answer: int, captured: Sequence[CapturedTokens]) -> None:
        self.captured += captured

    def on_token(self, answer: int, token: ScoredToken) -> bool:
        self.tokens.append(token.id)
        return False

    def on_finish(self, answer: int, reason: FinishReason | FoveaError, produced: int) -> None:
        if self.reason is None:
            self.reason, self.produced = reason, produced


@dataclass(frozen=True, eq=False, slots=True)
class RequestOutput:
    """A request in the scheduler's form, and its answer as it is gathered."""

    request: GenerationRequest
    policy: Policy
    backend: str
    collector: TokenCollector

    @classmethod
    def of(cls, asked: Request, policy: Policy, backend: str) -> RequestOutput:
        """The output of a request that is yet to be served by a method, on a kernels' back end.

        Raises InvalidOption: there is no prompt, or a token is unknown.
        """
        vocab = policy.config.vocab
        if not len(asked.ids) or not all(0 <= i < vocab for i in asked.ids):
            raise InvalidOption(f"A prompt needs tokens below {vocab}.", field="ids")
        collector = TokenCollector()
        sampling = Sampling(asked.temperature, asked.top_p, asked.top_k, asked.min_p, asked.seed)
        request = GenerationRequest(
            [int(i) for i in asked.ids], [sampling], asked.max_tokens, policy=policy, stop_token_ids=asked.ends,
            priority=asked.priority, run=asked.run or CallContext(), taps=asked.taps, adapter=asked.adapter,
            hooks=collector,
        )  # fmt: skip
        return cls(request, policy, backend, collector)

    def completion(self) -> Completion:
        """The whole answer. Raises FoveaError: it failed; RuntimeError: it is not over yet."""
        reason = self.collector.reason
        if reason is None:
            raise RuntimeError("the answer is not over yet")
        if isinstance(reason, FoveaError):
            raise reason
        usage = CompletionUsage(
            prompt_tokens=len(self.request.prompt_ids),
            completion_tokens=self.collector.produced,
            method=self.policy.method.name,
            knobs=self.policy.method.model_dump(mode="json"),
            backend=self.backend,
            **asdict(self.request.stats),
        )
        return Completion(self.collector.tokens, usage, reason, self.collector.captured)
