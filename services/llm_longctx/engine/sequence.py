"""Sequences: one answer from its place in the queue to its last token, and what a backend allocated for it.

Knows a request's rules (stop tokens, longest answer, log-probabilities); knows nothing about other sequences.
"""

import time
from contextvars import Context
from functools import partial
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest
from services.llm_longctx.engine.sampler import Sampler
from services.llm_longctx.engine.taps import SequenceTaps
from services.llm_longctx.kernels import RowSettings


class Allocation(Protocol):
    """Allocation of a backend for a sequence: pages, or a session."""

    def close(self) -> None:
        """Give it back."""
        ...


S = TypeVar("S", bound=Allocation)


class Sequence(Generic[S]):
    """One answer of a request. Where it stands is where the scheduler holds it: in the queue, in prefill, or running.

    Attributes:
        request: The request.
        answer: Which of the request's answers it is.
        context: The caller's context, so that metrics carry its service and model.
        arrival: Its request's place in the order of arrival.
        arrived_at: When it was made, and `first_token_at`, when its first token was drawn (`time.perf_counter`).
        since: When it joined the queue, when its prefill began, then when its decoding did (`time.perf_counter`).
        siblings: Further answers of the request, which begin with this one's prefill; empty once it is done.
        num_computed: Prompt tokens that were read.
        output_ids: Tokens drawn, a stop token included.
        is_last_try: Whether it had all memory to itself and did not fit.
        taps: Its edits and captures inside the model, once it was allocated.
        state: Pages or a session that a backend holds for it, while it `is_allocated`.
    """

    state: S

    def __init__(self, request: GenerationRequest, answer: int, arrival: int, vocab: int, context: Context) -> None:
        self.request = request
        self.answer = answer
        self.context = context
        self.arrival = arrival
        self.since = self.arrived_at = time.perf_counter()
        self.first_token_at = 0.0
        self.siblings: list[Sequence[S]] = []
        self.num_computed = 0
        self.output_ids: list[int] = []
        self.is_last_try = False
        self.taps: SequenceTaps | None = None
        grammar = request.hooks.open_grammar(answer)
        self._sampler = Sampler(request.samplings[answer], request.prompt_ids, vocab, grammar)
        self._next = -1  # index of the token to feed next

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Sorts by priority class, jobs behind the others of their class, then by arrival."""
        return -self.request.priority, self.request.run.job is not None, self.arrival

    @property
    def is_allocated(self) -> bool:
        """Whether it holds something."""
        return hasattr(self, "state")

    @property
    def is_prefilled(self) -> bool:
        """Whether its whole prompt was read."""
        return self.num_computed >= len(self.request.prompt_ids)

    @property
    def next_token(self) -> int:
        """The token to feed next."""
        return self.output_ids[self._next]

    @property
    def is_at_end(self) -> bool:
        """Whether the token to feed next is the last one drawn; not so while it is fed again after a preemption."""
        return self._next == len(self.output_ids) - 1

    def free(self) -> None:
        """Give back what it holds, if anything."""
        if self.is_allocated:
            self.state.close()
            del self.state

    def rewind(self) -> None:
        """Begin again, after what it held was taken: its prompt is read again, and its own tokens behind it."""
        self.since, self.is_last_try, self._next = time.perf_counter(), False, -1
        self.request.stats.preempted += 1

    def draw_settings(self) -> RowSettings:
        """Sampling settings of `choose_token` after the next step; greedy where it will draw nothing."""
        draws = self.request.max_tokens != 0 and self._next + 1 >= len(self.output_ids)
        return self._sampler.settings() if draws else RowSettings()

    def choose_token(self, row: Tensor | DrawnRow) -> Choice | FinishReason | None:
        """Choose the next token from the logits [V] after what was fed: for `append_token`, once the choice was read.

        After a preemption the tokens that were drawn already are fed again first: then there is nothing to choose.
        Raises InvalidOption: its interventions have made the logits useless.
        """
        logits, hooks = row.logits if isinstance(row, DrawnRow) else row, self.request.hooks
        if self.taps is not None:
            self.taps.report(logits, partial(hooks.on_capture, self.answer))
        if self.request.max_tokens == 0:
            return "length"
        self._next += 1
        if self._next < len(self.output_ids):
            return None
        hooks.on_logits(self.answer, logits)
        return self._sampler.choose(row, self.request.top_logprobs)

    def append_token(self, words: list[float]) -> FinishReason | None:
        """Append the token that was chosen; why the answer is over, if it is."""
        token, hooks = self._sampler.accept(words), self.request.hooks
        self.output_ids.append(token.id)
        self.request.run.extend()
        if token.id in self.request.stop_token_ids:
            hooks.on_stop_token(self.answer, token)
            return "stop"
        if hooks.on_token(self.answer, token) or self._sampler.is_finished:
            return "stop"
        return "length" if len(self.output_ids) >= self.request.max_tokens else None
