"""Sparsity claims: built from the owner's own statements and from what a bench measured.

The measured part is a room's `claims.json`, written from the results of `make bench`. A claim that was not measured is
made all the same, and the lint lists its open rules.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from shared.sparsity import SparsityClaim


def build_claim(model: str, facts: Mapping[str, Any], **stated: Any) -> SparsityClaim:
    """Build the claim of a model or method from measured fields of a `SparsityClaim`; those that are stated win."""
    layers: dict[str, float] = facts.get("sparsity_by_layer", {})
    derived = {
        "counted_in": "artefact" if layers else "config",
        "sparsity_global": fmean(layers.values()) if layers else 0.0,
        "dense_layers": [layer for layer, share in layers.items() if share == 0],
        "theoretical_flops_ratio": 1.0,
    }
    return SparsityClaim.model_validate({"model": model, **derived, **facts, **stated})


@cache
def read_measurements(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Content of a package's `claims.json`, by name; nothing where nothing was measured."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found
