"""The engine by hand: open sequences, read prompts, step, batch, measure; and answer requests together.

One pool of pages serves all sequences, each under its own method. Who steps when is the scheduler's business. Knows
token ids; knows nothing about text or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from services.llm_longctx.engine.decode_attention import decode, held_bytes
from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.open_sequence import OpenSequence
from services.llm_longctx.engine.request import Completion, Request
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kv_cache import Entries, PagePool
from services.llm_longctx.methods import AttentionMethod
from shared.errors import InvalidOption
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan

__all__ = ["Engine"]

Plan = HeadPlan | Mapping[str, Any] | None


class Engine:
    """Runs one decoder over pages.

    Attributes:
        model: The decoder.
        policy: What a sequence gets that asks for nothing else.
        dense: What it would get densely.
        pool: The pages.
        max_batch: Sequences that `generate` and a scheduler decode at a time.
        backend: Name of the kernels' back end, or `auto`.
        kernels: The back end that decodes.
    """

    def __init__(
        self,
        net: Decoder,
        method: str | AttentionMethod = "dense",
        plan: Plan = None,
        page: int = 64,
        backend: str = "auto",
        max_batch: int = 8,
        *,
        kv_bytes: int = 2 * 2**30,
        weights_sha256: str = "",
    ) -> None:
        """Take a model into service.

        Args:
            net: The decoder, in eval mode.
            method: Default method, by name or ready.
            plan: Default head plan.
            page: P, entries per page.
            backend: `auto`, or a back end of `services.llm_longctx.kernels.backends()`.
            max_batch: Sequences that `generate` decodes at a time; `open` and `batch` take any number.
            kv_bytes: Most bytes of keys and values that are held. One sequence of the model's whole context always
                fits.
            weights_sha256: Digest of the weights, against which plans are checked.

        Raises:
            InvalidOption: The method can't work, or a size is not positive.
            NotReady: The back end is not there.
        """
        if page < 1 or max_batch < 1:
            detail = f"page and max_batch must be at least 1, not {page} and {max_batch}."
            raise InvalidOption(detail, field="page" if page < 1 else "max_batch")
        config, like = net.config, net.output_matrix
        self.kernels = choose("decode", backend, like.dtype, like.device.type)
        self.model = net
        self.max_batch = max_batch
        self.backend = backend
        self.weights_sha256 = weights_sha256
        self.policy = Policy.of(config, method, plan, weights_sha256)
        self.dense = Policy.of(config, "dense")
        page_bytes = page * 2 * config.head_dim * like.element_size()
        least = config.layers * config.kv_heads * (-(-config.positions // page) + 1)
        self.pool = PagePool(max(kv_bytes // page_bytes, least), page, config.head_dim, like.dtype, like.device)
        self._open: list[OpenSequence] = []
        self._default: OpenSequence | None = None

    # By hand.

    def open(self, method: str | AttentionMethod | None = None, plan: Plan = None) -> OpenSequence:
        """A sequence of its own, under the engine's method and plan unless told otherwise.

        Raises:
            InvalidOption: The method can't work with this plan.
            BadInput: The plan is another model's.
        """
        return self.adopt(OpenSequence(self.model, self.pool, self.policy_of(method, plan), self.backend))

    def adopt(self, sequence: OpenSequence) -> OpenSequence:
        """Count a sequence among the open ones."""
        self._open = [s for s in self._open if not s.closed]
        self._open.append(sequence)
        return sequence

    def policy_of(self, method: str | AttentionMethod | None = None, plan: Plan = None) -> Policy:
        """A method made ready for this model; what is left out is the engine's."""
        if method is None and plan is None:
            return self.policy
        wanted = self.policy.method if method is None else method
        return Policy.of(self.model.config, wanted, self.policy.plan if plan is None else plan, self.weights_sha256)

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
        """What a head of the default sequence holds.

        Raises:
            InvalidOption: Nothing was read yet.
        """
        return self._current().entries(layer, kv_head)

    def batch(self, tokens: Mapping[OpenSequence, int]) -> dict[OpenSequence, Tensor]:
        """One ragged decode step: a token for each sequence → logits [V] for each."""
        if not tokens:
            return {}
        sequences = list(tokens)
        with torch.inference_mode():
            logits = decode(self.model, sequences, [int(t) for t in tokens.values()], self.backend)
        return dict(zip(sequences, logits, strict=True))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together by continuous batching, in their order.

        Raises:
            FoveaError: A request can't be served, or one failed; the others were finished.
        """
        orders = [request.order(self) for request in requests]
        scheduler = Scheduler(self, max_waiting=len(orders))
        for order, _ in orders:
            scheduler.submit(order)
        while scheduler.in_flight:
            scheduler.step()
        scheduler.close()
        return [answer.completion() for _, answer in orders]

    # Measured and foreseen.

    def kv_bytes(self) -> int:
        """Bytes of all pages that open sequences hold; shared ones count once."""
        return held_bytes([s for s in self._open if not s.closed])

    def estimate(
        self, method: str | AttentionMethod | None = None, plan: Plan = None, *, prompt: int, new: int = 0
    ) -> int:
        """Bytes that a request will hold: at least what it does, at most a page per head above it."""
        return self.pages(self.policy_of(method, plan), prompt, new) * self.pool.page_bytes

    def pages(self, policy: Policy, prompt: int, new: int) -> int:
        """Pages that a request will hold, rounded up head by head."""
        return policy.pages(prompt, new, self.pool.page)

    def dense_bytes(self, tokens: int) -> int:
        """Bytes that a dense request of so many tokens would hold."""
        return self.pages(self.dense, tokens, 0) * self.pool.page_bytes

    def _current(self) -> OpenSequence:
        if self._default is None:
            detail = "Nothing was read yet: prefill comes before step."
            raise InvalidOption(detail)
        return self._default
