"""A trained mixer as a Servable: its weights or random ones that say so, and one session per request.

Subclasses say how the network is built and what their voice is. Knows weights and schedulers; knows no HTTP.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from services.llm_longctx.engine import GenerationRequest, RequestSession, Scheduler, SessionBackend, SessionSource
from services.llm_longctx.serving.adapters.base import TextModelAdapter, priority_of
from services.llm_longctx.serving.text_model import TextModel
from services.llm_longctx.serving.toy_tokenizers import Placed
from shared.api.text import GenerationOptions, LongctxUsage
from shared.errors import Conflict, NotReady
from shared.registry import Card, LoadContext, network
from shared.registry.weights import NetworkSpec, find_weights, read_weights

__all__ = ["Loaded", "MixerModel", "MixerVoice", "NonFinite", "finite", "session_scheduler"]

PREFILL_TOKENS = 64
"""Prompt tokens read per step: sessions are slow, and those that run must not wait for long."""


class NonFinite(Conflict):
    """What the model remembers has left the numbers; nothing of it is kept."""

    title = "Memory not finite"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights.

    Attributes:
        net: In eval mode.
        digest: Of the weights, or of what random ones were drawn from.
        card: The Card with what is true of them.
    """

    net: nn.Module
    digest: str
    card: Card


@dataclass(frozen=True)
class MixerVoice(TextModelAdapter):
    """A network whose requests have a session each.

    Attributes:
        net: The network.
        digest: Of its weights; states belong to it.
        method: What `usage` calls its attention.
    """

    tokenizer: Placed
    scheduler: Scheduler[RequestSession]
    net: Any
    digest: str
    method: str

    def most(self, ids: Sequence[int], wanted: int | None) -> int:
        """Longest answer to a prompt."""
        room = self.context - len(ids)
        return room if wanted is None else min(wanted, room)

    def request_of(
        self, ids: Sequence[int], max_tokens: int, options: GenerationOptions, session: SessionSource[Any]
    ) -> GenerationRequest:
        """The engine request for a prompt that a session reads."""
        return GenerationRequest(
            ids,
            max_tokens=max_tokens,
            stop_token_ids=self.tokenizer.eos,
            priority=priority_of(options),
            session=session,
        )

    def usage(self, requests: Sequence[GenerationRequest]) -> LongctxUsage:
        """What the sessions held, beside what dense attention would."""
        stats = [request.stats for request in requests]
        held, dense = sum(s.kv_bytes for s in stats), sum(s.kv_bytes_dense for s in stats)
        return LongctxUsage(
            method=self.method,
            knobs={},
            kv_bytes=held,
            kv_bytes_dense=dense,
            kv_ratio=held / dense if dense else 1.0,
            prefill_density=sum(s.prefill_density for s in stats) / len(stats),
            full_steps=0,
            backend="torch",
            cached_tokens=sum(s.cached_tokens for s in stats),
            preempted=0,
            fallback=None,
        )


class MixerModel(TextModel):
    """Serves one network through its sessions."""

    folder: ClassVar[Path] = Path(__file__).parents[1] / "weights"
    speaker: MixerVoice
    untrained: ClassVar[NetworkSpec]
    """What is built where there are no weights."""

    def __init__(self, speaker: MixerVoice, card: Card) -> None:
        self.speaker = speaker
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Read the weights, if there are any, and start the scheduler.

        Raises:
            NotReady: Weights are not what their manifest says.
        """
        loaded = _read(cls.card, cls.untrained, cls.folder, place)
        speaker = cls.voice(loaded, place.threads)
        speaker.scheduler.start()
        return cls(speaker, loaded.card)

    @classmethod
    @abstractmethod
    def voice(cls, loaded: Loaded, threads: int) -> MixerVoice:
        """What speaks for a network."""


def session_scheduler(vocab: int, threads: int) -> Scheduler[RequestSession]:
    """A scheduler of sessions; it is not started yet."""
    return Scheduler(SessionBackend(vocab), prefill_tokens=PREFILL_TOKENS, threads=threads)


def finite(logits: Tensor) -> Tensor:
    """The logits, if they are numbers.

    Raises:
        NonFinite: They are not.
    """
    if not bool(torch.isfinite(logits).all()):
        detail = "What the model remembers is not finite any more."
        raise NonFinite(detail, hint="The session stays at its last good version; send something else.")
    return logits


def _read(card: Card, untrained: NetworkSpec, folder: Path, place: LoadContext) -> Loaded:
    try:
        file = find_weights(card.name, folder, place.weights)
    except NotReady:
        torch.manual_seed(0)
        net = network(untrained.name, **untrained.config)
        digest = hashlib.sha256(f"{card.name} {untrained.model_dump_json()} random".encode()).hexdigest()
        note = "There are no trained weights here: random ones are served, which know nothing."
        return Loaded(_quiet(net), digest, card.model_copy(update={"notes": (note, *card.notes), "weights": None}))
    weights = read_weights(file)
    manifest = weights.manifest
    net = network(manifest.network.name, **manifest.network.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    metrics = tuple(m.model_copy(update={"ours": manifest.metrics.get(m.name, m.ours)}) for m in card.metrics)
    facts = {"weights": manifest.sha256, "parameters": manifest.parameters, "metrics": metrics}
    return Loaded(_quiet(net), manifest.sha256, card.model_copy(update=facts))


def _quiet(net: nn.Module) -> nn.Module:
    """For reading only."""
    return net.eval().requires_grad_(requires_grad=False)
