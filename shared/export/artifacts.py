"""Artifacts of a set of weights: a torch network, and an ONNX graph that is exported once into the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.api.tensors import TensorSpec
from shared.engines import ModelArtifacts, open_engine
from shared.errors import FoveaError, NotReady
from shared.export.onnx_export import Parity, export_onnx
from shared.registry import Card, Engine, LoadContext, network
from shared.registry.weights import Weights
from shared.storage import ObjectStore
from shared.telemetry import log

__all__ = ["ExportedForms", "Shapes", "check_tensors", "open_engine_with_card", "refine_card"]

Shapes = Mapping[str, tuple[int, ...]]
"""Input → a shape to trace or to compare at."""


@dataclass(frozen=True, slots=True)
class ExportedForms:
    """The forms of one set of weights.

    Attributes:
        weights: Verified weights.
        cache: Folder for graphs.
        inputs: Tensors that it takes, in order; -1 is an axis of any length, and axis 0 the batch.
        outputs: Tensors that it gives, in order.
        tag: What of a graph's file name says how it was made (`352px-v1`): raise it when the code changes what a graph
            computes, so that cached ones are made anew. The digest of the weights is in the name already.
        call: Method of the network to run; None is the network itself.
        prepare: Last change before it is served (fusing batch norms, dropping branches); may return another module.
        shapes: Where to trace (the first) and to compare; empty: batches of 1 and 3, which is all that a free batch
            axis needs. Give some when another axis is free.
        sample: Draws an input of a shape to trace or to compare on, for networks whose answer to noise measures
            nothing; None takes noise.
    """

    weights: Weights
    cache: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tag: str
    call: str | None = None
    prepare: Callable[[nn.Module], nn.Module] | None = None
    shapes: Sequence[Shapes] = field(default=())
    sample: Callable[[tuple[int, ...]], Tensor] | None = None

    def network(self) -> nn.Module:
        """The torch network with these weights, in eval mode.

        Raises:
            RuntimeError: The weights are of another network than their manifest says.
        """
        spec = self.weights.manifest.network
        net: nn.Module = network(spec.name, **spec.config)
        net.load_state_dict({key: torch.from_numpy(array) for key, array in self.weights.arrays.items()})
        net = net.eval()
        return self.prepare(net).eval() if self.prepare else net

    def graph(self, objects: ObjectStore | None = None) -> Path:
        """The ONNX file, exported if it isn't there; its name holds the digest of the weights.

        Args:
            objects: Where other processes find a graph that one of them exported.

        Raises:
            Fault: The graph computes something else than the network.
        """
        if not (self._is_here() or (objects is not None and self._fetch(objects.under("graphs")))):
            parity = self._export()
            draft = self._facts.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(asdict(parity)))
            draft.replace(self._facts)  # whole or not at all: a replica and its worker may export at once
            if objects is not None:
                self._share(objects.under("graphs"))
        return self._graph

    def _is_here(self) -> bool:
        return self._graph.exists() and self._facts.exists()

    def _fetch(self, graphs: ObjectStore) -> bool:
        """Fetch the graph that another process exported; whether there is one."""
        return all(graphs.download(file.name, file) for file in (self._graph, self._facts))

    def _share(self, graphs: ObjectStore) -> None:
        try:
            for file in (self._graph, self._facts):
                graphs.upload(file.name, file)
        except FoveaError as error:  # others export it again
            log().warning("an exported graph is not shared", graph=self._graph.name, reason=error.detail)

    def parity(self) -> Parity | None:
        """How far the exported graph is from the network; None before it is exported."""
        if not self._facts.exists():
            return None
        return Parity(**json.loads(self._facts.read_text()))

    def forms(self, name: str, objects: ObjectStore | None = None) -> ModelArtifacts:
        """The artifacts that `open_engine` takes; `name` is the remote server's name of the network."""

        def build_network() -> tuple[nn.Module, Callable[..., Any] | None]:
            net = self.network()
            return net, self._callable(net)

        return ModelArtifacts(
            name, self.inputs, self.outputs, graph=partial(self.graph, objects), network=build_network
        )

    def _callable(self, net: nn.Module) -> Callable[..., Any] | None:
        return getattr(net, self.call) if self.call else None

    def _export(self) -> Parity:
        net = self.network()
        first, *others = self.shapes or [self._batch(1), self._batch(3)]
        draw = torch.Generator().manual_seed(0)
        return export_onnx(
            net,
            self._graph,
            self._sample(first, draw),
            [spec.name for spec in self.outputs],
            call=self._callable(net),
            dynamic=dict(map(_free_axes, (*self.inputs, *self.outputs))),
            probes=[self._sample(shapes, draw) for shapes in others],
        )

    def _batch(self, count: int) -> Shapes:
        return {spec.name: (count, *spec.shape[1:]) for spec in self.inputs}

    def _sample(self, shapes: Shapes, draw: torch.Generator) -> dict[str, Tensor]:
        """Normal numbers: what a network computes from them compares as well as any picture. Integers: 0..3."""
        if self.sample is not None:
            return {spec.name: self.sample(shapes[spec.name]) for spec in self.inputs}
        return {spec.name: _draw(spec, shapes[spec.name], draw) for spec in self.inputs}

    @property
    def _graph(self) -> Path:
        manifest = self.weights.manifest
        return self.cache / f"{manifest.name}-{manifest.sha256}-{self.tag}.onnx"

    @property
    def _facts(self) -> Path:
        return self._graph.with_suffix(".json")


def open_engine_with_card(card: Card, artifacts: ExportedForms, context: LoadContext) -> tuple[Engine, Card]:
    """Open the engine that `context` names, and refine the Card with the facts of the loaded weights.

    Raises:
        NotReady: No engine opens here, or it holds another network.
    """
    engine = open_engine(context, artifacts.forms(card.name, context.objects))
    check_tensors(engine, artifacts)
    return engine, refine_card(card, artifacts, engine.name)


def check_tensors(engine: Engine, artifacts: ExportedForms) -> None:
    """Check that an engine has the tensors that the code feeds it: a remote server has a model of its own.

    Raises:
        NotReady: It has others; the engine is closed.
    """
    inputs, outputs = artifacts.inputs, artifacts.outputs
    is_same = [spec.shape[1:] for spec in engine.inputs] == [spec.shape[1:] for spec in inputs]
    if is_same and len(engine.outputs) == len(outputs):
        return
    found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in (*engine.inputs, *engine.outputs))
    engine.close()
    expected = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
    raise NotReady(f"The {engine.name} engine holds another network: {found}.", hint=f"It must take {expected}.")


def refine_card(card: Card, artifacts: ExportedForms, engine: str) -> Card:
    """Refine a Card with the facts of the loaded weights: digest, size, measured metrics, parity of the graph."""
    manifest, notes = artifacts.weights.manifest, list(card.notes)
    measured = manifest.metrics if manifest.origin == "trained" else {}
    metrics = tuple(m.model_copy(update={"ours": measured.get(m.name)}) for m in card.metrics)
    if engine != "torch" and (parity := artifacts.parity()) is not None:
        size = f"{parity.max_difference:.1e} on values up to {parity.max_value:.1f}"
        notes.append(f"The ONNX graph differs from torch by at most {size}, measured at export.")
    facts = {"weights": manifest.sha256, "parameters": manifest.parameters, "metrics": metrics, "notes": tuple(notes)}
    return card.model_copy(update=facts)


def _draw(spec: TensorSpec, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if spec.datatype == "INT64":
        return torch.randint(4, shape, generator=draw)
    return torch.randn(shape, generator=draw)


def _free_axes(spec: TensorSpec) -> tuple[str, dict[int, str]]:
    """Axes of any length by name; the batch axes of all tensors are one."""
    free = (axis for axis, length in enumerate(spec.shape) if length == -1)
    return spec.name, {axis: f"{spec.name}_{axis}" if axis else "n" for axis in free}
