"""Generation requests: a prompt and the answers wanted, hooks that receive tokens, what it cost, how it failed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fovea.errors import Cancelled, Fault, FoveaError, TooLarge
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.requests.sampling import Grammar, Sampling, ScoredToken
from services.llm_longctx.engine.taps import CapturedTokens, RequestTaps
from shared import telemetry
from shared.lm.lora import LoraAdapter
from shared.registry import CallContext

FinishReason = Literal["stop", "length"]


class RequestHooks:
    """Outside partner of one request: it receives the tokens and brings the grammars.

    Each method gets the index of the answer. All but `open_grammar` are called on the scheduler's thread, so they must
    be quick.
    """

    def open_grammar(self, answer: int) -> Grammar | None:
        """Return what the answer may say, where it may not say everything."""
        return None

    def on_prompt(self, answer: int, tokens: Sequence[ScoredToken]) -> None:
        """Receive the next part of the prompt with its log-probabilities; only where the request asks for them."""

    def on_capture(self, answer: int, captured: Sequence[CapturedTokens]) -> None:
        """Receive what was captured since the last call, before the next token; only where the request asks for it."""

    def on_logits(self, answer: int, logits: Tensor) -> None:
        """Receive the logits [V] that the next token is drawn from, in the model's type and where it lies."""

    def on_token(self, answer: int, token: ScoredToken) -> bool:
        """Receive the next token; True ends the answer here."""
        return False

    def on_stop_token(self, answer: int, token: ScoredToken) -> None:
        """Receive the token of `stop_token_ids` that ended the answer."""

    def on_finish(self, answer: int, reason: FinishReason | FoveaError, produced: int) -> None:
        """Receive the end of the answer after `produced` tokens, a stop token included. The last call."""


@dataclass(slots=True)
class RequestStats:
    """Cost of a request; filled in while it is served.

    Attributes:
        kv_bytes: Most bytes that its answers held at the end of one.
        kv_bytes_dense: Bytes that dense answers of these lengths would hold.
        prefill_density: Share of causal pairs or blocks that was read, mean over layers; 1 for dense prefill.
        full_steps: Decode steps that looked at everything, where the method skips.
        cached_tokens: Tokens of the prompt that came from the prefix cache.
        fallback: Why dense was served instead of the requested method, or None.
        budget_missed: How the budget is missed by what serves, or None.
        preempted: How often an answer lost its pages and was prefilled again.
    """

    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    prefill_density: float = 1.0
    full_steps: int = 0
    cached_tokens: int = 0
    fallback: str | None = None
    budget_missed: str | None = None
    preempted: int = 0

    @property
    def kv_ratio(self) -> float:
        """Bytes held, of those that dense answers would hold."""
        return self.kv_bytes / self.kv_bytes_dense if self.kv_bytes_dense else 1.0


@dataclass(eq=False, slots=True)
class GenerationRequest:
    """A prompt and the answers wanted.

    Attributes:
        prompt_ids: The prompt.
        samplings: How each of the answers is drawn; they share the prefill.
        max_tokens: Longest answer; 0 only reads the prompt.
        policy: The method that serves it; None takes the engine's.
        fallback_from: The method that was asked for, where another serves in its place.
        boundaries: Chunk borders for methods that would predict them.
        stop_token_ids: Token ids that end an answer and are not part of it.
        top_logprobs: Log-probabilities of so many likeliest tokens next to the chosen one's; None computes none.
        score_prompt: Whether the prompt's own log-probabilities are reported.
        top_prompt_logprobs: With `score_prompt`: of at least so many likeliest tokens at each place.
        score_from: With `score_prompt`: tokens before this one are not scored, so that they may come from the cache.
        priority: Higher classes are admitted first.
        run: Deadline and cancellation.
        source: With what a plug-in's backend reads it; None for the paged backend.
        taps: Its edits and captures inside the model.
        adapter: Its LoRA adapter.
        hooks: Receives its tokens.
        stats: Its cost.
        num_scored: With `score_prompt`: tokens before this one were scored, or need not be.
        is_dropped: Whether nobody reads its answers any more; set from any thread.
    """

    prompt_ids: Sequence[int]
    samplings: Sequence[Sampling] = (Sampling(),)
    max_tokens: int = 16
    policy: Policy | None = None
    fallback_from: Policy | None = None
    boundaries: Sequence[int] | None = None
    stop_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    score_prompt: bool = False
    top_prompt_logprobs: int = 0
    score_from: int = 0
    priority: int = 0
    run: CallContext = field(default_factory=CallContext)
    source: Any = None
    taps: RequestTaps | None = None
    adapter: LoraAdapter | None = None
    hooks: RequestHooks = field(default_factory=RequestHooks)
    stats: RequestStats = field(default_factory=RequestStats)
    num_scored: int = 0
    is_dropped: bool = False

    def check(self) -> None:
        """Check that somebody waits for its answers.

        Raises Cancelled: nobody does; DeadlineExceeded: its time is up.
        """
        if self.is_dropped:
            detail = "The request was dropped."
            raise Cancelled(detail)  # ends as if its caller had gone away
        self.run.check()


def to_safe_error(error: Exception) -> FoveaError:
    """Return what a caller may know of a failure of ours; the rest goes to the log."""
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("engine failed", exc_info=error)
    detail = "The model failed on this request."
    return Fault(detail, hint="The log of the service says why.")


def too_large() -> TooLarge:
    """Return the error of a request that does not fit even alone."""
    return TooLarge("The request needs more memory for keys and values than this model has.")
