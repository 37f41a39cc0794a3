"""LLM engine: one decoder on pages, with a scheduler that serves many requests by continuous batching.

One pool of pages serves all sequences, each under its own method. Knows token ids; knows nothing about text or HTTP.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from fovea.errors import InvalidOption
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.device.parallel_backend import Channel, open_backend
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.kernels import SmallMatrix
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kv_cache import CacheBits, PagePool
from services.llm_longctx.methods import AttentionMethod
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan
from shared.lm.tensor_parallel import Team

Plan = HeadPlan | Mapping[str, Any] | None


class EngineCore:
    """Runs one decoder over pages: what a service needs of an engine.

    Attributes:
        model, policy, max_batch, backend, monitor: As they were given; the policy is the default method made ready.
        dense: Policy of dense attention.
        pool: The pages.
        kernels: The back end that decodes.
        runner: Runs the decoder.
        scheduler: Decides which sequence runs when.
        prefix_cache: Prompts that were read.
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
            max_batch: Sequences that are decoded at a time; what is driven by hand does not count.
            kv_bytes: Most bytes of keys and values that are held; one sequence of the whole context always fits.
            weights_sha256: Digest of the weights, against which plans are checked.
            packed: Few-bit matrices by official key that decode steps are made with, as in `NativeDecoder`.
            monitor: Compares a share of the answers with dense attention; None compares none.
            prefix_block: As in `PrefixCache`; None is a page.
            threads: As in `Scheduler`.
            cache_bits: Default format of older entries, 16 for the decoder's type; few bits need pages of 16 entries.
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
        page_bytes = page * 2 * config.head_dim * like.element_size()
        least = config.layers * config.kv_heads * (-(-config.positions // page) + 1)
        self.pool = PagePool(max(kv_bytes // page_bytes, least), page, config.head_dim, like.dtype, like.device)
        if cache_bits != 16:
            self.pool.open_packed(cache_bits)
        self.runner = ModelRunner(net, self.pool, backend, weights_sha256, packed, team)
        self.dense = self.runner.dense
        paged = open_backend(channel, team, self.runner, self.policy, max_batch, monitor, prefix_block or page)
        self.scheduler = Scheduler(paged, threads=threads)
        self.prefix_cache = paged.prefix_cache

    def policy_of(
        self,
        method: str | AttentionMethod | None = None,
        plan: Plan = None,
        cache_bits: CacheBits | Literal[16] | None = None,
    ) -> Policy:
        """A method made ready for this model; what is left out is the engine's.

        Raises InvalidOption: the method can't work with this plan, or pages are of another size than few bits need;
        BadInput: the plan is another model's.
        """
        bits = self.policy.cache_bits if cache_bits is None else cache_bits
        if bits != 16:
            self.pool.open_packed(bits)
        if method is None and plan is None:
            return self.policy.with_cache(bits)
        wanted = self.policy.method if method is None else method
        plan = self.policy.plan if plan is None else plan
        return Policy.of(self.policy.config, wanted, plan, self.runner.weights_sha256, cache_bits=bits)

    def dense_bytes(self, tokens: int) -> int:
        """Bytes that a dense request of so many tokens would hold."""
        return self.dense.nbytes(tokens, 0, self.pool)
