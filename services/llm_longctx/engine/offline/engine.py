"""The engine of scripts, benches and tests: requests that are answered together, and sequences that are driven by hand.

Knows token ids; knows nothing about text.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from weakref import WeakSet

from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.engine.engine import EngineCore, Plan
from services.llm_longctx.engine.offline.completion import Completion, Request, RequestOutput
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.kv_cache import Entries, count_bytes
from services.llm_longctx.methods import AttentionMethod
from shared.lm.lora import LoraAdapter


class Engine(EngineCore):
    """Runs one decoder over pages, by hand (open, prefill, step, batch) or for many requests by continuous batching."""

    _default: OpenSequence | None = None

    # Many requests.

    def add_request(self, request: Request) -> RequestOutput:
        """Line up a request; its answer gathers as the scheduler steps.

        Raises InvalidOption: there is no prompt, a token is unknown, or the method can't work; QueueFull: too many
        requests wait.
        """
        output = self._prepare(request)
        self.scheduler.add_request(output.request)
        return output

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together by continuous batching, in their order.

        Raises FoveaError: a request can't be served, or one failed; the others were finished.
        """
        outputs = [self._prepare(request) for request in requests]
        scheduler = Scheduler(self.scheduler.backend, max_waiting=len(outputs))
        try:
            for output in outputs:
                scheduler.add_request(output.request)
            while scheduler.in_flight:
                scheduler.step()
        finally:
            scheduler.close()
        return [output.completion() for output in outputs]

    # By hand.

    def open(
        self, method: str | AttentionMethod | None = None, plan: Plan = None, adapter: LoraAdapter | None = None
    ) -> OpenSequence:
        """A sequence of its own, under the engine's method and plan unless told otherwise.

        Raises InvalidOption: the method can't work with this plan; BadInput: the plan is another model's.
        """
        return OpenSequence(self.runner, self.runner.open(self.policy_of(method, plan), adapter), self._opened)

    def prefill(
        self, ids: Sequence[int], chunks: Sequence[int] | None = None, boundaries: Sequence[int] | None = None
    ) -> Tensor:
        """Read a prompt into the default sequence, closing the last one: logits of every position [N,V]."""
        if self._default is not None:
            self._default.close()
        self._default = self.open()
        return self._default.prefill(ids, chunks, boundaries)

    def step(self, token: int) -> Tensor:
        """Feed one token to the default sequence: logits of the next [V].

        Raises InvalidOption: nothing was read yet.
        """
        return self._current().step(token)

    def entries(self, layer: int, kv_head: int) -> Entries:
        """Entries of a head of the default sequence. Raises InvalidOption: nothing was read yet."""
        return self._current().entries(layer, kv_head)

    def batch(self, tokens: Mapping[OpenSequence, int]) -> dict[OpenSequence, Tensor]:
        """One ragged decode step: a token for each sequence → logits [V] for each."""
        if not tokens:
            return {}
        logits = self.runner.decode([s.state for s in tokens], [int(token) for token in tokens.values()])
        return dict(zip(tokens, logits, strict=True))

    def _current(self) -> OpenSequence:
        if self._default is None:
            raise InvalidOption("Nothing was read yet: prefill comes before step.")
        return self._default

    @cached_property
    def _opened(self) -> WeakSet[OpenSequence]:
        return WeakSet()

    # Held and foreseen.

    def kv_bytes(self) -> int:
        """Bytes of all pages that sequences driven by hand hold; shared ones count once."""
        return count_bytes(sequence.state.cache for sequence in self._opened)

    def estimate(
        self, method: str | AttentionMethod | None = None, plan: Plan = None, *, prompt: int, new: int = 0
    ) -> int:
        """Bytes that a request will hold: at least what it does, at most a page per head above it."""
        return self.policy_of(method, plan).nbytes(prompt, new, self.pool)

    def _prepare(self, request: Request) -> RequestOutput:
        policy = self.policy_of(request.method, request.plan, request.cache_bits)
        return RequestOutput.of(request, policy, self.backend)
