"""Routing-clusters experiment: which tokens of a text each head of a routing model clusters together.

In the Routing Transformer (Roy et al., 2021) a token attends to the last ones of its own cluster, so clusters are all
that a head can see. The model belongs to another service: weights and network are found by name. Knows one text and one
layer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption, NotFound
from services.interpretability.core.experiment import NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.model_registry import ModelRegistry, registry_for
from services.interpretability.core.report import Report, Scalar, Strip, Table, TokenSpan, heat_map
from services.interpretability.core.result_store import ResultStore
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.models.tiny_induction import BYTE_TOKENIZER_ID, byte_tokenizer
from shared.registry import Card, LoadContext, Paper, network
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_weights

MODEL_PREFIX = "fovea-routing"
"""Prefix of the names of routing models."""

MAX_LISTED_TOKENS = 200
"""Tokens of a cluster that a table lists."""


@dataclass(frozen=True)
class _RoutingModel(StudiedModel):
    """A routing model under study; it is not a decoder of `shared.lm`, so its sizes are read from the network."""

    model: Any

    @property
    def layers(self) -> int:
        return len(self.model.blocks)

    @property
    def heads(self) -> int:
        return int(self.model.blocks[self.first][1].means.shape[0])

    @property
    def first(self) -> int:
        """The first layer that routes."""
        return next(layer for layer, (_, attention, _, _) in enumerate(self.model.blocks) if attention.routes)

    @property
    def window(self) -> int:
        return int(self.model.context)

    @property
    def dtype(self) -> str:
        return str(self.model.out.weight.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.model.out.weight.device)

    @property
    def seconds_per_token(self) -> float:
        return 0.0


class RoutingClustersSpec(Spec):
    """Text and layer."""

    text: str = Field(min_length=1, max_length=50_000, description="The text; as many bytes as the model reads.")
    layer: int | None = Field(
        None, ge=0, description="Whose routing heads are shown; left out, the first that has some."
    )


class RoutingClusters(Experiment[RoutingClustersSpec]):
    """Lists the clusters of each routing head."""

    In = RoutingClustersSpec
    mode = "sync"
    route: ClassVar[str] = "routing"
    card: ClassVar[Card] = Card(
        name="routing-clusters",
        task="probe",
        licence="Apache-2.0",
        summary="Lists the clusters of each routing head with their tokens: a token sees the last ones of its own.",
        paper=Paper.on_arxiv(
            "Efficient Content-Based Sparse Attention with Routing Transformers", 2021, "2003.05997", venue="TACL"
        ),
        notes=("Causal mode, as served: clusters are chosen by content, before positions.", NO_GRAPH),
        example={"lm": "fovea-routing-bytes", "seed": 0, "text": "def add(a, b):\n    return a + b\n"},
    )

    def __init__(self, models: ModelRegistry, store: ResultStore, imported: Path = Path()) -> None:
        super().__init__(models, store)
        self._imported = imported

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        if context.threads:
            torch.set_num_threads(context.threads)
        return cls(registry_for(context), ResultStore.of_context(context), context.weights)

    def load_model(self, name: str | None) -> StudiedModel:
        """Return a routing model by name; left out, the first one.

        Raises:
            NotFound: It is not a routing model, or has no weights here; the detail lists those there are.
        """
        known = {**shipped_weights(), **{file.stem: file for file in sorted(self._imported.glob("*.safetensors"))}}
        routing = {key: file for key, file in known.items() if key.startswith(MODEL_PREFIX)}
        wanted = name or next(iter(routing), MODEL_PREFIX)
        if wanted not in routing:
            detail = f"{wanted!r} has no routing heads; models that have are {', '.join(routing) or 'not here'}."
            raise NotFound(
                detail, hint="Head patterns and attention work for every model of /v1/probe/models.", field="lm"
            )
        return _load_model(wanted, routing[wanted], self.models.device)

    def cost(self, spec: RoutingClustersSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(_encode_text(spec, subject)))

    def run(self, spec: RoutingClustersSpec, subject: StudiedModel, progress: Progress) -> Report:
        ids = _encode_text(spec, subject)
        captured = _capture_clusters(subject, ids)
        routing = [number for number, clusters in enumerate(captured) if clusters is not None]
        layer = routing[0] if spec.layer is None else spec.layer
        if layer not in routing:
            detail = f"Layer {layer} of {subject.name} has no routing heads."
            raise InvalidOption(detail, hint=f"Layers that have: {', '.join(map(str, routing))}.", field="layer")
        model = cast("Any", subject.model)
        centroids = int(model.blocks[layer][1].means.shape[1])
        return _report(layer, ids, captured[layer].clusters[0, :, : len(ids)], centroids)


@torch.no_grad()
def _capture_clusters(subject: StudiedModel, ids: list[int]) -> list[Any]:
    """Per layer the clusters of its routing heads; None where it has none."""
    captured: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        captured.append(output[2])

    model: Any = subject.model
    handles = [attention.register_forward_hook(keep) for _, attention, _, _ in model.blocks]
    try:
        model(subject.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _report(layer: int, ids: list[int], clusters: Tensor, centroids: int) -> Report:
    """Report of clusters [H,T]."""
    tokens = _byte_spans(bytes(ids))
    counts = torch.stack([torch.bincount(head, minlength=centroids) for head in clusters])
    heads = range(len(clusters))
    rows: list[list[Any]] = []
    for head in heads:
        for cluster in range(centroids):
            members = (clusters[head] == cluster).nonzero().flatten().tolist()
            shown = " ".join(f"{tokens[t].text!r}@{t}" for t in members[:MAX_LISTED_TOKENS])
            rows.append([head, cluster, len(members), shown + (" …" if len(members) > MAX_LISTED_TOKENS else "")])
    alone = float((counts.gather(1, clusters) == 1).double().mean())
    listed = f"Members as byte@position, at most {MAX_LISTED_TOKENS} of a cluster."
    columns = ("cluster", range(centroids))
    unbalanced = "Tokens of each cluster: it is unbalanced by nature."
    return Report(
        title=f"Clusters of layer {layer}",
        scalars={
            "tokens": Scalar(value=len(ids)),
            "occupancy_min": Scalar(value=int(counts.min()), note="Tokens of the emptiest cluster."),
            "occupancy_max": Scalar(value=int(counts.max()), note="Tokens of the fullest cluster."),
            "alone": Scalar(value=alone, note="Share of tokens that are alone in their cluster: they see themselves."),
        },
        tables=[Table.of("clusters", "head, cluster, tokens, members", rows, listed)],
        grids=[heat_map("occupancy", counts.tolist(), ("head", heads), columns, unbalanced, unit="tokens")],
        strips=[
            Strip(
                name=f"head {head}",
                tokens=tokens,
                values=[float(c) for c in clusters[head]],
                caption="Equal numbers are equal clusters.",
            )
            for head in heads
        ],
    )


def _encode_text(spec: RoutingClustersSpec, subject: StudiedModel) -> list[int]:
    if spec.layer is not None and not 0 <= spec.layer < subject.layers:
        raise InvalidOption(f"layer must be one of 0…{subject.layers - 1}.", field="layer")
    ids = list(spec.text.encode())
    subject.check_window(len(ids), "text")
    return ids


def _byte_spans(raw: bytes) -> list[TokenSpan]:
    """Each byte as text, with the span of its character."""
    spans: list[TokenSpan] = []
    for position, letter in enumerate(raw.decode()):
        pieces = letter.encode()
        shown = [letter] if len(pieces) == 1 else [f"<{piece:02x}>" for piece in pieces]
        spans += [TokenSpan(text=text, start=position, end=position + 1) for text in shown]
    return spans


@cache
def _load_model(name: str, file: Path, device: str) -> _RoutingModel:
    weights = read_weights(file)
    built: Any = network(weights.manifest.network.name, **weights.manifest.network.config)
    state: Mapping[str, Tensor] = {key: torch.from_numpy(array) for key, array in weights.arrays.items()}
    built.load_state_dict(state)
    tokenizer = hashlib.sha256(BYTE_TOKENIZER_ID.encode()).hexdigest()
    model = built.requires_grad_(requires_grad=False).eval().to(device)
    return _RoutingModel(name, model, byte_tokenizer(), weights.manifest.sha256, tokenizer, "Apache-2.0")
