"""LLM engine: one decoder on pages, by hand (open, prefill, step, batch) or for many requests by continuous batching.

One pool of pages serves all sequences, each under its own method. Knows token ids; knows nothing about text or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.device.parallel_backend import Channel, FollowingBackend, open_backend
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.offline.completion import Completion, Request, RequestOutput
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.kernels import SmallMatrix
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kernels.packed_pages import MOST_CHANNELS, PAGE
from services.llm_longctx.kv_cache import CacheBits, Entries, PagePool
from services.llm_longctx.methods import AttentionMethod
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan
from shared.lm.lora import LoraAdapter
from shared.lm.tensor_parallel import Team

Plan = HeadPlan | Mapping[str, Any] | None


class Engine:
    """Runs one decoder over pages.

    Attributes:
        model: The decoder.
        policy: Default method of a sequence.
        dense: Its dense counterpart.
        pool: The pages.
        max_batch: Sequences that are decoded at a time by continuous batching.
        backend: Name of the kernels' back end, or `auto`.
        kernels: The back end that decodes.
        runner: Runs the decoder.
        scheduler: Decides which sequence runs when.
    """

    def __init__(
        self,
        net: Decoder,
        method: str | AttentionMethod = "dense",
        plan: Plan = None,
        page: int = 16,
        backend: str = "auto",
        max_batch: int = 8,
        *,
        kv_bytes: int = 2 * 2**30,
        weights_sha256: str = "",
        packed: Mapping[str, SmallMatrix] = MappingProxyType({}),
        monitor: FidelityMonitor | None = None,
        max_waiting: int = 64,
        prefill_tokens: int = 512,
        prefix_block: int | None = None,
        threads: int = 0,
        cache_bits: CacheBits | Literal[16] = 16,
        team: Team | None = None,
        channel: Channel | None = None,
    ) -> None:
        """Take a model into service.

        Args:
            net: The decoder, in eval mode.
            method: Default method, by name or ready.
            plan: Default head plan.
            page: P, entries per page. Every head is rounded up to whole ones, so small pages leave more of a budget of
                bytes to heads that stream; kernels read runs of pages and don't care.
            backend: `auto`, or a back end of `services.llm_longctx.kernels.backends()`.
            max_batch: Sequences that are decoded at a time; `open` and `batch` take any number.
            kv_bytes: Most bytes of keys and values that are held. One sequence of the model's whole context always
                fits.
            weights_sha256: Digest of the weights, against which plans are checked.
            packed: Few-bit matrices by official key that decode steps are made with, as in `NativeDecoder`.
            monitor: Compares a share of the answers with dense attention; None compares none.
            max_waiting: As in `Scheduler`.
            prefill_tokens: As in `Scheduler`.
            prefix_block: As in `PrefixCache`; None is a page.
            threads: As in `Scheduler`.
            cache_bits: Default format of older entries, or 16 for the decoder's own type. Pages of few bits have
                16 entries.
            team: The processes that hold the decoder together; `net` is this one's part then.
            channel: From the first of them to the others.

        Raises:
            InvalidOption: The method can't work, or a size is not positive.
            NotReady: The back end is not there.
        """
        if page < 1 or max_batch < 1:
            detail = f"page and max_batch must be at least 1, not {page} and {max_batch}."
            raise InvalidOption(detail, field="page" if page < 1 else "max_batch")
        config, like = net.config, net.output_matrix
        self.kernels = choose("decode", backend, like.dtype, like.device.type)
        self.model, self.max_batch, self.backend, self.monitor = net, max_batch, backend, monitor
        self.policy = Policy.of(config, method, plan, weights_sha256, cache_bits=cache_bits)
        self._check_cache(cache_bits, page)
        page_bytes = page * 2 * config.head_dim * like.element_size()
        least = config.layers * config.kv_heads * (-(-config.positions // page) + 1)
        self.pool = PagePool(max(kv_bytes // page_bytes, least), page, config.head_dim, like.dtype, like.device)
        self.runner = ModelRunner(net, self.pool, backend, weights_sha256, packed, team)
        self.dense = self.runner.dense
        self._channel, block = channel, prefix_block or page
        paged = open_backend(channel, team, self.runner, self.policy, max_batch, monitor, block)
        self.scheduler = Scheduler(paged, max_waiting=max_waiting, prefill_tokens=prefill_tokens, threads=threads)
        self.prefix_cache = paged.prefix_cache
        self._default: OpenSequence | None = None

    def follow(self) -> None:
        """Do what the first of the processes says that hold the decoder together, until it stops.

        Raises:
            TypeError: This is the first, or the only one.
        """
        backend = self.scheduler.backend
        if self._channel is None or not isinstance(backend, FollowingBackend):
            message = "only a process next to the first one follows"
            raise TypeError(message)
        backend.follow(self._channel)

    # Many requests.

    def add_request(self, request: Request) -> RequestOutput:
        """Line up a request; its answer gathers as the scheduler steps.

        Raises:
            InvalidOption: There is no prompt, a token is unknown, or the method can't work.
            QueueFull: Too many requests wait.
        """
        output = self._prepare(request)
        self.scheduler.add_request(output.request)
        return output

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together by continuous batching, in their order.

        Raises:
            FoveaError: A request can't be served, or one failed; the others were finished.
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
        self,
        method: str | AttentionMethod | None = None,
        plan: Plan = None,
        adapter: LoraAdapter | None = None,
    ) -> OpenSequence:
        """A sequence of its own, under the engine's method and plan unless told otherwise.

        Raises:
            InvalidOption: The method can't work with this plan.
            BadInput: The plan is another model's.
        """
        return OpenSequence(self.runner, self.runner.open(self.policy_of(method, plan), adapter))

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

        Raises:
            InvalidOption: Nothing was read yet.
        """
        return self._current().step(token)

    def entries(self, layer: int, kv_head: int) -> Entries:
        """Entries of a head of the default sequence.

        Raises:
            InvalidOption: Nothing was read yet.
        """
        return self._current().entries(layer, kv_head)

    def batch(self, tokens: Mapping[OpenSequence, int]) -> dict[OpenSequence, Tensor]:
        """One ragged decode step: a token for each sequence → logits [V] for each."""
        if not tokens:
            return {}
        logits = self.runner.decode([s.state for s in tokens], [int(token) for token in tokens.values()])
        return dict(zip(tokens, logits, strict=True))

    # Measured and foreseen.

    def policy_of(
        self,
        method: str | AttentionMethod | None = None,
        plan: Plan = None,
        cache_bits: CacheBits | Literal[16] | None = None,
    ) -> Policy:
        """A method made ready for this model; what is left out is the engine's.

        Raises:
            InvalidOption: The method can't work with this plan, or pages are of another size than few bits need.
            BadInput: The plan is another model's.
        """
        bits = self.policy.cache_bits if cache_bits is None else cache_bits
        self._check_cache(bits, self.pool.page)
        if method is None and plan is None:
            return self.policy.with_cache(bits)
        wanted = self.policy.method if method is None else method
        plan = self.policy.plan if plan is None else plan
        return Policy.of(self.model.config, wanted, plan, self.runner.weights_sha256, cache_bits=bits)

    def _check_cache(self, bits: int, page: int) -> None:
        if bits != 16 and page != PAGE:
            detail = f"A cache of {bits} bits needs pages of {PAGE} entries, and this engine's have {page}."
            raise InvalidOption(detail, field="kv_cache_dtype")
        if bits != 16 and self.model.config.head_dim > MOST_CHANNELS:
            detail = f"A cache of {bits} bits is for heads of {MOST_CHANNELS} channels at most."
            raise InvalidOption(detail, hint="Leave the cache in the model's own type.", field="kv_cache_dtype")

    def kv_bytes(self) -> int:
        """Bytes of all pages that open sequences hold; shared ones count once."""
        return self.runner.held_bytes

    def estimate(
        self, method: str | AttentionMethod | None = None, plan: Plan = None, *, prompt: int, new: int = 0
    ) -> int:
        """Bytes that a request will hold: at least what it does, at most a page per head above it."""
        return self.policy_of(method, plan).nbytes(prompt, new, self.pool)

    def entry_bytes(self, cache_bits: CacheBits | Literal[16]) -> int:
        """Bytes of an entry of an older page, key and value, rounded down."""
        return self.pool.entry_bytes if cache_bits == 16 else self.pool.open_packed(cache_bits).page_bytes // PAGE

    def dense_bytes(self, tokens: int) -> int:
        """Bytes that a dense request of so many tokens would hold."""
        return self.dense.nbytes(tokens, 0, self.pool)

    def _current(self) -> OpenSequence:
        if self._default is None:
            detail = "Nothing was read yet: prefill comes before step."
            raise InvalidOption(detail)
        return self._default

    def _prepare(self, request: Request) -> RequestOutput:
        policy = self.policy_of(request.method, request.plan, request.cache_bits)
        return RequestOutput.of(request, policy, self.backend)
