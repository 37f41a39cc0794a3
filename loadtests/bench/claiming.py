"""Result of a suite that measures sparsity claims: its table, the facts of each claim, and weights that shipped."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loadtests.bench.result import Table, machine
from shared.registry import network
from shared.registry.discovery import shipped_weights
from shared.registry.weights import Manifest, read_weights


@dataclass(frozen=True)
class Claims(Table):
    """The table, and the facts of each claim by the name of what claims."""

    claims: dict[str, dict[str, Any]] = field(default_factory=dict)


def timing(ours: Sequence[float], dense: Sequence[float], **said: Any) -> dict[str, Any]:
    """`measured` of a claim, from milliseconds of both; `said` is what the clock does not know."""
    p50, dense_p50 = statistics.median(ours), statistics.median(dense)
    return {
        "speedup": dense_p50 / p50,
        "device": machine()["cpu"],
        "kernel_sparse": True,
        "runs": len(ours),
        "p50_ms": p50,
        "p95_ms": float(np.percentile(ours, 95)),
        "dense_p50_ms": dense_p50,
        **said,
    }


def open_shipped(name: str) -> tuple[Any, Manifest]:
    """A network with weights that came with a package, and their manifest."""
    found = read_weights(shipped_weights()[name])
    net = network(found.manifest.network.name, **found.manifest.network.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in found.arrays.items()})
    return net.eval(), found.manifest
