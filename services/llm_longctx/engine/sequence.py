"""Sequences: one answer from its place in the queue to its last token, and what a backend allocated for it.

Knows a request's rules (stop tokens, longest answer, log-probabilities); knows nothing about other sequences.
"""

from __future__ import annotations

import time
from contextvars import Context
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow
from services.llm_longctx.engine.requests.failures import to_safe_error
from services.llm_longctx.engine.requests.request import FinishReason, GenerationRequest
from services.llm_longctx.engine.sampler import Sampler, token_logprobs
from services.llm_longctx.engine.taps import SequenceTaps
from services.llm_longctx.kernels import RowSettings
from shared.lm.host_transfer import to_host


class SequenceStatus(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    PREFILL = auto()
    RUNNING = auto()
    FINISHED = auto()


class Allocation(Protocol):
    """Allocation of a backend for a sequence: pages, or a session."""

    def close(self) -> None:
        """Give it back."""
        ...


S = TypeVar("S", bound=Allocation)


class Sequence(Generic[S]):
    """One answer of a request.

    Attributes:
        request: The request.
        answer: Which of the request's answers it is.
        context: The caller's context, so that metrics carry its service and model.
        arrival: Its request's place in the order of arrival.
        status: Where it stands.
        arrived_at: When it was made, and `first_token_at`, when its first token was drawn (`time.perf_counter`).
        since: When it joined the queue, when its prefill began, then when its decoding did (`time.perf_counter`).
        siblings: Further answers of the request, which begin with this one's prefill; empty once it is done.
        num_computed: Prompt tokens that were read.
        output_ids: Tokens drawn, a stop token included.
        is_last_try: Whether it had all memory to itself and did not fit.
        taps: Its edits and captures inside the model, once it was allocated.
    """

    def __init__(self, request: GenerationRequest, answer: int, arrival: int, vocab: int, context: Context) -> None:
        self.request = request
        self.answer = answer
        self.context = context
        self.arrival = arrival
        self.status = SequenceStatus.WAITING
        self.since = self.arrived_at = time.perf_counter()
        self.first_token_at = 0.0
        self.siblings: list[Sequence[S]] = []
        self.num_computed = 0
        self.output_ids: list[int] = []
        self.is_last_try = False
        self.taps: SequenceTaps | None = None
        self._state: S | None = None
        sampling, grammar = request.samplings[answer], request.hooks.open_grammar(answer)
        self._sampler = Sampler(sampling, request.prompt_ids, vocab, grammar)
        self._next = 0  # index of the token to feed next
        self._num_scored = 0

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Sorts by priority class, jobs behind the others of their class, then by arrival."""
        return -self.request.priority, self.request.run.job is not None, self.arrival

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

    # State.

    @property
    def state(self) -> S:
        """Allocation of its backend for it.

        Raises:
            RuntimeError: Nothing was.
        """
        if self._state is None:
            message = "a sequence must be allocated before it is run"
            raise RuntimeError(message)
        return self._state

    @state.setter
    def state(self, allocation: S) -> None:
        self._state = allocation

    @property
    def is_allocated(self) -> bool:
        """Whether it holds something."""
        return self._state is not None

    def free(self) -> None:
        """Give back what it holds, if anything."""
        if self._state is not None:
            self._state.close()
            self._state = None

    # Output.

    def count_logits(self, size: int) -> int | None:
        """Positions of the prompt's next `size` tokens whose logits are needed, from the last on; None for all."""
        end = self.num_computed + size
        if self.request.score_prompt and self._first_unscored(self.num_computed) <= end:
            return None
        return int(end == len(self.request.prompt_ids))

    def report_prompt(self, logits: Tensor, begin: int) -> None:
        """Report log-probabilities of the prompt by the logits [t,V] of its tokens from `begin` on, if asked for."""
        if not self.request.score_prompt:
            return
        first = self._first_unscored(begin)
        if known := list(self.request.prompt_ids[first : self.num_computed + 1]):
            self._num_scored = first + len(known)
            rows = logits[first - 1 - begin :][: len(known)]
            top = max(self.request.top_logprobs or 0, self.request.top_prompt_logprobs)
            tokens = token_logprobs(rows, known, top)
            for one in (self, *self.siblings):
                one.request.hooks.on_prompt(one.answer, tokens)

    def draw_settings(self) -> RowSettings:
        """Sampling settings of `choose_token` after the next step; greedy where it will draw nothing."""
        draws = self.request.max_tokens != 0 and self._next + 1 >= len(self.output_ids)
        return self._sampler.settings() if draws else RowSettings()

    def choose_token(self, row: Tensor | DrawnRow) -> Choice | FinishReason | None:
        """Choose the next token from the logits [V] after what was fed: for `append_token`, once the choice was read.

        After a preemption the tokens that were drawn already are fed again first: then there is nothing to choose.

        Raises:
            InvalidOption: Its interventions have made the logits useless.
        """
        if self.taps is not None:
            self._report_taps(self.taps, row.logits if isinstance(row, DrawnRow) else row)
        if self.request.max_tokens == 0:
            return "length"
        self._next += 1
        if self._next < len(self.output_ids):
            return None
        self._next = len(self.output_ids)
        if self.request.recorder is not None:
            self.request.recorder.add_logits(row.logits if isinstance(row, DrawnRow) else row)
        return self._sampler.choose(row, self.request.top_logprobs)

    def try_choose(self, row: Tensor | DrawnRow | Exception) -> Choice | FinishReason | FoveaError | None:
        """As `choose_token`; a failure, also of the step, ends this answer alone."""
        try:
            return to_safe_error(row) if isinstance(row, Exception) else self.choose_token(row)
        except Exception as error:  # noqa: BLE001  # one that fails, fails alone
            return to_safe_error(error)

    def append_token(self, words: list[float]) -> FinishReason | None:
        """Append the token that was chosen; why the answer is over, if it is."""
        token = self._sampler.accept(words)
        self.output_ids.append(token.id)
        self.request.run.extend()
        if self.request.recorder is not None:
            self.request.recorder.add_token(token.id)
        if token.id in self.request.stop_token_ids:
            self.request.hooks.on_stop_token(self.answer, token)
            return "stop"
        if self.request.hooks.on_token(self.answer, token) or self._sampler.is_finished:
            return "stop"
        return "length" if len(self.output_ids) >= self.request.max_tokens else None

    def preempt(self) -> None:
        """Wait again, after what it held was taken: its prompt is read again, and its own tokens behind it."""
        self.status, self.since, self.is_last_try = SequenceStatus.WAITING, time.perf_counter(), False
        self._next, self._num_scored = -1, len(self.request.prompt_ids)
        self.request.stats.preempted += 1

    def finish(self, reason: FinishReason | FoveaError) -> None:
        """Report that the answer is over."""
        self.status = SequenceStatus.FINISHED
        self.request.hooks.on_finish(self.answer, reason, len(self.output_ids))

    def _report_taps(self, taps: SequenceTaps, logits: Tensor) -> None:
        if captured := taps.take():
            self.request.hooks.on_capture(self.answer, captured)
        if taps.request.edits and not bool(to_host(torch.isfinite(logits).all())):
            detail = "Under these interventions the model's activations are not finite any more."
            raise InvalidOption(detail, hint="Choose smaller scales and factors.", field="interventions")

    def _first_unscored(self, begin: int) -> int:
        """The first prompt token that logits from position `begin` on can score and that is to be scored."""
        return max(begin + 1, self.request.score_from, self._num_scored)
