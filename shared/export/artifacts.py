"""Artifacts of a set of weights: a torch network, and an ONNX graph that is exported once into the cache.

Imports no torch: a process that serves graphs needs none. `torch_form` makes networks and graphs, in a child process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.api.tensors import TensorSpec
from fovea.errors import FoveaError, NotReady
from shared.engines import ModelArtifacts, open_engine
from shared.export.child import EXPORT_CHILD
from shared.export.parity import Parity
from shared.registry import Card, Engine, LoadContext
from shared.registry.weights import Weights
from shared.storage import ObjectStore
from shared.telemetry import log

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        tag: The part of a graph's file name that states how it was made (`352px-v1`): raise it when a graph of the
            code computes anything else, so that cached ones are made anew. The name holds the weights' digest already.
        call: Method of the network to run; None is the network itself.
        prepare: Last change before it is served (fusing batch norms, dropping branches); may return another module.
        shapes: Where to trace (the first) and to compare; empty: batches of 1 and 3, which is all that a free batch
            axis needs. Give some when another axis is free.
        sample: Draws an input of a shape to trace or to compare on, for networks whose answer to noise measures
            nothing; None takes noise.
        given: Folder of graphs that came with an image; they win over the cache.
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
    given: Path | None = None

    def network(self) -> nn.Module:
        """The torch network with these weights, in eval mode; `NotReady` without torch, see also `build_network`."""
        net: nn.Module = self._torch_form().build_network(self)
        return net

    def graph(self, objects: ObjectStore | None = None) -> Path:
        """The ONNX file, exported if it isn't there; its name holds the digest of the weights.

        Other processes find it in `objects`. Raises Fault if the graph computes something else than the network,
        NotReady if nobody exported it and there is no torch here.
        """
        is_here = self._graph.exists() and self._facts.exists()
        if not is_here and objects is not None:
            graphs = objects.under("graphs")  # where another process may have put it
            is_here = all(graphs.download(file.name, file) for file in (self._graph, self._facts))
        if not is_here:
            parity = self._export()
            draft = self._facts.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(asdict(parity)))
            draft.replace(self._facts)  # whole or not at all: a replica and its worker may export at once
            if objects is not None:
                self._share(objects.under("graphs"))
        return self._graph

    def _share(self, graphs: ObjectStore) -> None:
        try:
            for file in (self._graph, self._facts):
                graphs.upload(file.name, file)
        except FoveaError as error:  # others export it again
            log().warning("an exported graph is not shared", graph=self._graph.name, reason=error.detail)

    def parity(self) -> Parity | None:
        """How far the exported graph is from the network; None before it is exported."""
        return Parity(**json.loads(self._facts.read_text())) if self._facts.exists() else None

    def forms(self, name: str, objects: ObjectStore | None = None) -> ModelArtifacts:
        """The artifacts that `open_engine` takes; `name` is the remote server's name of the network."""

        def build_network() -> tuple[nn.Module, Callable[..., Any] | None]:
            net = self.network()
            return net, self.callable_of(net)

        graph = partial(self.graph, objects)
        return ModelArtifacts(name, self.inputs, self.outputs, graph=graph, network=build_network)

    def callable_of(self, net: nn.Module) -> Callable[..., Any] | None:
        """The part of the network to run; None: the network itself."""
        return getattr(net, self.call) if self.call else None

    def _export(self) -> Parity:
        """Export in a child process, unless torch is loaded here anyway."""
        if "torch" not in sys.modules and importlib.util.find_spec("torch") is not None:
            return EXPORT_CHILD.export(self, self._graph)
        parity: Parity = self._torch_form().export_graph(self, self._graph)
        return parity

    def _torch_form(self) -> Any:
        try:
            return importlib.import_module("shared.export.torch_form")
        except ModuleNotFoundError as error:
            detail = f"Without the library {error.name} there is no network, and no graph {self._graph.name} was given."
            hint = "FOVEA_GRAPHS_DIR names what `fovea export graphs` wrote where the extra `cpu` is installed."
            raise NotReady(detail, hint=hint) from error

    @property
    def _graph(self) -> Path:
        manifest = self.weights.manifest
        name = f"{manifest.name}-{manifest.sha256}-{self.tag}"
        folders = [folder for folder in (self.given, self.cache) if folder is not None]
        return next((f for f in folders if (f / f"{name}.json").exists()), self.cache) / f"{name}.onnx"

    @property
    def _facts(self) -> Path:
        return self._graph.with_suffix(".json")


def open_engine_with_card(card: Card, artifacts: ExportedForms, context: LoadContext) -> tuple[Engine, Card]:
    """Open the engine that `context` names, and refine the Card by its weights; `NotReady` for another network."""
    artifacts = replace(artifacts, given=context.graphs)
    engine = open_engine(context, artifacts.forms(card.name, context.objects))
    check_tensors(engine, artifacts)
    return engine, refine_card(card, artifacts, engine)


def check_tensors(engine: Engine, artifacts: ExportedForms) -> None:
    """Check that an engine has the tensors that the code feeds it; else it is closed, and `NotReady` raised."""
    inputs, outputs = artifacts.inputs, artifacts.outputs
    is_same = [spec.shape[1:] for spec in engine.inputs] == [spec.shape[1:] for spec in inputs]
    if is_same and len(engine.outputs) == len(outputs):
        return
    found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in (*engine.inputs, *engine.outputs))
    engine.close()
    expected = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
    raise NotReady(f"The {engine.name} engine holds another network: {found}.", hint=f"It must take {expected}.")


def refine_card(card: Card, artifacts: ExportedForms, engine: Engine) -> Card:
    """Refine a Card with the facts of the loaded weights: digest, size, measured metrics, parity, what runs it."""
    manifest, notes = artifacts.weights.manifest, list(card.notes)
    measured = manifest.metrics if manifest.origin == "trained" else {}
    metrics = tuple(m.model_copy(update={"ours": measured.get(m.name)}) for m in card.metrics)
    if engine.name != "torch" and (parity := artifacts.parity()) is not None:
        size = f"{parity.max_difference:.1e} on values up to {parity.max_value:.1f}"
        notes.append(f"The ONNX graph differs from torch by at most {size}, measured at export.")
    if engine.reason:
        provider = getattr(engine, "provider", None)  # of an engine that has a choice of them
        on = f" ({provider})" if provider else ""
        notes.append(f"Runs on {engine.name}{on}: {engine.reason}")
    facts = {"weights": manifest.sha256, "parameters": manifest.parameters, "metrics": metrics, "notes": tuple(notes)}
    return card.model_copy(update=facts)
