"""What a set of weights becomes: a torch network, and an ONNX graph that is exported once and kept in the cache.

Knows weights and where graphs are kept; how a network is exported and compared is `shared.training.export`'s.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.registry import network
from shared.registry.weights import Weights
from shared.training.export import Parity, export_onnx

__all__ = ["NAMES", "Artefacts"]

NAMES = ("image", "logits")
"""Input and output of the network as tensors, in the ONNX graph and on the Open Inference route."""

_FORMAT = 1
"""Raised when the code changes what a graph computes, so that cached ones are made anew."""


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The forms of one set of weights.

    Attributes:
        weights: Verified weights.
        side: Side of the square that the network is served at, pixels.
        cache: Folder for graphs.
    """

    weights: Weights
    side: int
    cache: Path

    def network(self) -> nn.Module:
        """The torch network with these weights, in eval mode.

        Raises:
            RuntimeError: The weights are of another network than their manifest says.
        """
        spec = self.weights.manifest.network
        net: nn.Module = network(spec.name, **spec.config)
        net.load_state_dict({key: torch.from_numpy(array) for key, array in self.weights.arrays.items()})
        return net.eval()

    def graph(self) -> Path:
        """The ONNX file of the prediction, exported if it isn't there; its name holds the digest of the weights.

        The batch may have any length. Height and width are fixed: a graph of other sizes would take pictures that the
        network was not made for, and TensorRT would build an engine for each.

        Raises:
            Fault: The graph computes something else than the network.
        """
        if not (self._graph.exists() and self._facts.exists()):
            parity = self._export()
            draft = self._facts.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(asdict(parity)))
            draft.replace(self._facts)  # whole or not at all: a replica and its worker may export at once
        return self._graph

    def _export(self) -> Parity:
        net, (given, wanted) = self.network(), NAMES
        draw = torch.Generator().manual_seed(0)
        one, three = ({given: torch.randn(n, 3, self.side, self.side, generator=draw)} for n in (1, 3))
        axes = {given: {0: "n"}, wanted: {0: "n"}}
        call: Any = net.prediction
        return export_onnx(net, self._graph, one, [wanted], call=call, dynamic=axes, probes=[three])

    def parity(self) -> Parity | None:
        """How far the exported graph is from the network; None before it is exported."""
        if not self._facts.exists():
            return None
        return Parity(**json.loads(self._facts.read_text()))

    @property
    def _graph(self) -> Path:
        manifest = self.weights.manifest
        return self.cache / f"{manifest.name}-{manifest.sha256}-{self.side}px-v{_FORMAT}.onnx"

    @property
    def _facts(self) -> Path:
        return self._graph.with_suffix(".json")
