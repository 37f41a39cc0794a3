"""Parallel backend: the paged backend of a decoder that several processes hold together, one of which leads.

The leader's scheduler decides; whatever changes pages or runs the decoder, it first tells the others, who do the same
with their part. All hold as many pages at any time, because methods that cut heads are refused. Knows backends and
messages; knows neither a model nor how processes are started.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from torch import Tensor

from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.backend import PagedBackend
from services.llm_longctx.engine.device.step_draws import DrawnRow
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.requests.request import GenerationRequest
from services.llm_longctx.engine.sequence import Sequence
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.methods import AttentionMethod
from shared.lm.tensor_parallel import Team

DIVISIBLE = ("dense", "flexprefill")
"""Methods that treat each head by itself and keep all entries: all processes hold as many."""


class Channel(Protocol):
    """Messages from the leader to all others, in order."""

    def send(self, message: Any) -> None:
        """Send to all others."""
        ...

    def receive(self) -> Any:
        """Wait for the leader's next message."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A sequence, as far as others need to know it.

    Attributes:
        number: The leader's.
        parent: Number of the sequence whose prefill it shares, if any.
        method: Its method, with its knobs.
        cache_bits: Of older entries.
        salt: Whose cached prefixes it may use.
        facts: Fields of its request.
    """

    number: int
    parent: int | None
    method: AttentionMethod
    cache_bits: Any
    salt: str
    facts: dict[str, Any]


class LeadingBackend(PagedBackend):
    """The leader's; see `SequenceBackend`."""

    def __init__(self, *arguments: Any, channel: Channel, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._channel, self._numbers = channel, count()
        self._known: dict[Sequence[PagedState], int] = {}

    def allocate(self, sequence: Sequence[PagedState], parent: Sequence[PagedState] | None = None) -> None:
        request, policy = sequence.request, sequence.request.policy or self.policy
        check_divisible(policy, has_taps=request.taps is not None or request.adapter is not None)
        self._known[sequence] = number = next(self._numbers)
        facts = {
            name: getattr(request, name)
            for name in ("prompt_ids", "max_tokens", "boundaries", "score_prompt", "score_from", "top_logprobs")
        }
        above = None if parent is None else self._known[parent]
        opened = Opened(number, above, policy.method, policy.cache_bits, request.run.cache_salt, facts)
        self._channel.send(("allocate", opened))
        super().allocate(sequence, parent)

    def prefill_chunk(self, sequence: Sequence[PagedState], limit: int) -> Tensor:
        self._make_room(sequence.state.cache.pages_needed(self.next_size(sequence, limit)))
        self._channel.send(("prefill", self._known[sequence], limit, sequence.is_last_try))
        return super().prefill_chunk(sequence, limit)

    def decode_batch(self, batch: list[Sequence[PagedState]]) -> list[Tensor] | list[DrawnRow]:
        self._channel.send(("decode", [self._known[s] for s in batch], [s.next_token for s in batch]))
        return super().decode_batch(batch)

    def release(self, sequence: Sequence[PagedState]) -> None:
        if (number := self._known.pop(sequence, None)) is not None:
            self._channel.send(("release", number))
        super().release(sequence)

    def reclaim(self) -> None:
        self._channel.send(("reclaim",))
        super().reclaim()

    def _make_room(self, pages: int) -> bool:
        if self.runner.pool.free < pages:
            self._channel.send(("make_room", pages))
        return super()._make_room(pages)


class FollowingBackend(PagedBackend):
    """Another process's: it does what the leader says, and decides nothing."""

    def follow(self, channel: Channel) -> None:
        """Do what the leader says until it stops."""
        held: dict[int, Sequence[PagedState]] = {}
        does: dict[str, Callable[..., object]] = {
            "allocate": lambda opened: self._open(held, opened),
            "prefill": lambda number, limit, is_last_try: self._read(held[number], limit, is_last_try),
            "decode": lambda numbers, tokens: self._decode([held[i] for i in numbers], tokens),
            "release": lambda number: self.release(held.pop(number)) if number in held else None,
            "reclaim": self.reclaim,
            "make_room": super()._make_room,
        }
        while True:
            verb, *arguments = channel.receive()
            if verb == "stop":
                return
            try:
                does[verb](*arguments)
            except (PoolExhausted, FoveaError):
                continue  # the leader has failed alike, and says what follows

    def _open(self, held: dict[int, Sequence[PagedState]], opened: Opened) -> None:
        policy = Policy.of(self.runner.model.config, opened.method, cache_bits=opened.cache_bits)
        request = GenerationRequest(policy=policy, **opened.facts)
        request.run.cache_salt = opened.salt
        made = Sequence[PagedState](request, 0, opened.number, self.vocab, contextvars.Context())
        held[opened.number] = made
        self.allocate(made, None if opened.parent is None else held[opened.parent])

    def _read(self, sequence: Sequence[PagedState], limit: int, is_last_try: bool) -> None:  # as sent
        sequence.is_last_try = is_last_try
        self.prefill_chunk(sequence, limit)

    def _decode(self, batch: list[Sequence[PagedState]], tokens: list[int]) -> None:
        for sequence, token in zip(batch, tokens, strict=True):
            sequence.output_ids = [token]
        self.decode_batch(batch)

    def _make_room(self, pages: int) -> bool:
        return self.runner.pool.free >= pages  # the leader has made it


def open_backend(channel: Channel | None, team: Team | None, *arguments: Any) -> PagedBackend:
    """The backend of a process: alone, leading, or following."""
    if channel is None or team is None:
        return PagedBackend(*arguments)
    return FollowingBackend(*arguments) if team.rank else LeadingBackend(*arguments, channel=channel)


def check_divisible(policy: Policy, *, has_taps: bool) -> None:
    """Check that a method works on some of the heads as on all.

    Raises InvalidOption: it doesn't, or its request looks into the model.
    """
    if has_taps:
        detail = "Interventions, captures and adapters need the whole model in one process; several hold this one."
        raise InvalidOption(detail, hint="Set FOVEA_LLM_TENSOR_PARALLEL=1.")
    if policy.method.name not in DIVISIBLE:
        detail = f"{policy.method.name} may hold other entries in one head than in another, or compare heads."
        hint = f"Use {' or '.join(DIVISIBLE)}, or set FOVEA_LLM_TENSOR_PARALLEL=1."
        raise InvalidOption(detail, hint=hint, field="method")
