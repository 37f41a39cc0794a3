"""Offline requests: the small form of a generation request for scripts, benches and tests, and its gathered answer.

Knows token ids; knows nothing about text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.request import CandidateSpec, FinishReason, GenerationRequest, Sampling, ScoredToken
from services.llm_longctx.methods import AttentionMethod
from shared.errors import FoveaError, InvalidOption
from shared.lm.head_plan import HeadPlan
from shared.registry import CallContext

__all__ = ["Completion", "CompletionUsage", "Request", "RequestOutput"]


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


@dataclass(frozen=True, slots=True)
class CompletionUsage:
    """What an answer cost; see `RequestStats`."""

    prompt_tokens: int
    completion_tokens: int
    method: str
    knobs: dict[str, Any]
    backend: str
    kv_bytes: int
    kv_bytes_dense: int
    kv_ratio: float
    prefill_density: float
    full_steps: int
    cached_tokens: int
    fallback: str | None
    preempted: int


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its tokens, why it ended, and what it cost."""

    tokens: list[int]
    usage: CompletionUsage
    reason: FinishReason


@dataclass(eq=False, slots=True)
class RequestOutput:
    """Gathers the answer to a request; a `TokenCallback`.

    Attributes:
        tokens: Tokens so far, without a stop token.
        reason: Why the answer ended, an error if it failed; None while it is produced.
        produced: Tokens drawn in the end, a stop token included.
    """

    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | FoveaError | None = None
    produced: int = 0

    def on_prompt(self, tokens: Sequence[ScoredToken]) -> None:
        """Scores of the prompt are not gathered."""

    def on_token(self, token: ScoredToken) -> bool:
        """One more token."""
        self.tokens.append(token.id)
        return False

    def on_finish(self, reason: FinishReason | FoveaError, produced: int) -> None:
        """The answer is over."""
        if self.reason is None:
            self.reason, self.produced = reason, produced

    def completion(self, request: GenerationRequest, policy: Policy, backend: str) -> Completion:
        """The whole answer.

        Args:
            request: What was asked.
            policy: The method that served it.
            backend: Name of the kernels' back end.

        Raises:
            FoveaError: It failed.
            RuntimeError: It is not over yet.
        """
        if self.reason is None:
            message = "the answer is not over yet"
            raise RuntimeError(message)
        if isinstance(self.reason, FoveaError):
            raise self.reason
        usage = CompletionUsage(
            prompt_tokens=len(request.prompt_ids),
            completion_tokens=self.produced,
            method=policy.method.name,
            knobs=policy.method.model_dump(mode="json"),
            backend=backend,
            kv_ratio=request.stats.kv_ratio,
            **asdict(request.stats),
        )
        return Completion(self.tokens, usage, self.reason)


def to_generation_request(request: Request, policy: Policy, output: RequestOutput) -> GenerationRequest:
    """The request in the scheduler's form.

    Raises:
        InvalidOption: There is no prompt, or a token is unknown.
    """
    vocab = policy.config.vocab
    if not len(request.ids) or not all(0 <= i < vocab for i in request.ids):
        detail = f"A prompt needs tokens below {vocab}."
        raise InvalidOption(detail, field="ids")
    sampling = Sampling(request.temperature, request.top_p, request.top_k, request.min_p, request.seed)
    return GenerationRequest(
        [int(i) for i in request.ids],
        [CandidateSpec(sampling, output)],
        request.max_tokens,
        policy=policy,
        stop_token_ids=request.ends,
        priority=request.priority,
        run=request.run or CallContext(),
    )
