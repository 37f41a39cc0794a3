"""A sparsity claim put together: what its owner says of itself, and what a bench measured of it.

The measured part lies in a room as `claims.json`, written from the results of `make bench`. What was not measured is
claimed all the same, and the lint says what it owes. Knows records; knows no model and no method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from shared.sparsity import SparsityClaim

__all__ = ["build_claim", "read_measurements"]


def build_claim(model: str, facts: Mapping[str, Any], **said: Any) -> SparsityClaim:
    """The claim of a model or method.

    Args:
        model: Its name.
        facts: What was measured: fields of a `SparsityClaim`.
        said: The other fields; they win.
    """
    layers: dict[str, float] = facts.get("sparsity_by_layer", {})
    derived = {
        "counted_in": "artefact" if layers else "config",
        "sparsity_global": fmean(layers.values()) if layers else 0.0,
        "dense_layers": [layer for layer, share in layers.items() if share == 0],
        "theoretical_flops_ratio": 1.0,
    }
    return SparsityClaim.model_validate({"model": model, **derived, **facts, **said})


@cache
def read_measurements(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """What a room's `claims.json` holds, by name; nothing where nothing was measured."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found
