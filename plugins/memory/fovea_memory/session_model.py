"""A trained mixer as a Servable: its weights, or random ones that are labelled, and one session per request.

Subclasses say how the network is built and make the adapter. Knows weights and schedulers; knows no HTTP.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

from fovea.errors import NotReady
from fovea_memory.adapters.session import SessionAdapter
from fovea_memory.session_backend import SessionBackend
from fovea_memory.toy_tokenizers import OffsetTokenizer
from services.llm_longctx.engine import Scheduler
from services.llm_longctx.generation_metrics import watch_scheduler
from services.llm_longctx.serving.text_model import TextModel
from shared.registry import Card, LoadContext, network
from shared.registry.weights import NetworkSpec, find_weights, read_weights

AdapterT = TypeVar("AdapterT", bound=SessionAdapter)

PREFILL_TOKENS = 64
"""Prompt tokens read per step: sessions are slow, and those that run must not wait for long."""


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        net: The network, in eval mode.
        digest: Digest of the weights, or of what random ones were drawn from.
        card: The Card with the facts of these weights.
    """

    net: nn.Module
    digest: str
    card: Card


class SessionModel(TextModel):
    """Serves one network through its sessions.

    Class attributes:
        folder: Where weights come with the package.
        untrained: The network that is built where there are no weights.
    """

    folder: ClassVar[Path] = Path(__file__).parent / "weights"
    adapter: SessionAdapter
    untrained: ClassVar[NetworkSpec]

    def __init__(self, adapter: SessionAdapter, card: Card) -> None:
        self.adapter = adapter
        self.card = card  # type: ignore[misc]  # the class's Card with the facts of the loaded weights

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Read the weights, if there are any, and start the scheduler.

        Raises:
            NotReady: Weights are not what their manifest says.
        """
        loaded = _load_network(cls.card, cls.untrained, cls.folder, place)
        adapter = cls.make_adapter(loaded, place.threads)
        adapter.scheduler.start()
        watch_scheduler(cls.card.name, adapter.scheduler)
        return cls(adapter, loaded.card)

    def details(self) -> dict[str, Any]:
        return {"remembers": "session_id" in self.takes, "cites": "document_id" in self.takes}

    @classmethod
    @abstractmethod
    def make_adapter(cls, loaded: LoadedNetwork, threads: int) -> SessionAdapter:
        """The adapter of a loaded network."""

    @classmethod
    def build_adapter(
        cls,
        kind: Callable[..., AdapterT],
        loaded: LoadedNetwork,
        threads: int,
        tokenizer: OffsetTokenizer,
        context: int,
        method: str,
        **more: Any,
    ) -> AdapterT:
        """An adapter of this kind with a scheduler of its own, not started yet; `more` are the kind's own arguments."""
        name, vocab, digest = cls.card.name, cls.untrained.config["vocab"], loaded.digest
        scheduler = Scheduler(SessionBackend(vocab), prefill_tokens=PREFILL_TOKENS, threads=threads)
        fingerprint = f"fp_{digest[:16]}_float32"
        return kind(name, fingerprint, tokenizer, scheduler, context, vocab, loaded.net, digest, method, **more)


def _load_network(card: Card, untrained: NetworkSpec, folder: Path, context: LoadContext) -> LoadedNetwork:
    try:
        file = find_weights(card.name, folder, context.weights)
    except NotReady:
        torch.manual_seed(0)
        net = network(untrained.name, **untrained.config)
        digest = hashlib.sha256(f"{card.name} {untrained.model_dump_json()} random".encode()).hexdigest()
        note = "There are no trained weights here: random ones are served, which know nothing."
        card = card.model_copy(update={"notes": (note, *card.notes), "weights": None})
        return LoadedNetwork(_freeze(net), digest, card)
    weights = read_weights(file)
    manifest = weights.manifest
    net = network(manifest.network.name, **manifest.network.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    metrics = tuple(m.model_copy(update={"ours": manifest.metrics.get(m.name, m.ours)}) for m in card.metrics)
    facts = {"weights": manifest.sha256, "parameters": manifest.parameters, "metrics": metrics}
    return LoadedNetwork(_freeze(net), manifest.sha256, card.model_copy(update=facts))


def _freeze(net: nn.Module) -> nn.Module:
    """Eval mode, without gradients."""
    return net.eval().requires_grad_(requires_grad=False)
