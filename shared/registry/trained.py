"""Models that were trained here: weights whose manifest says which model serves them become Servables of their own.

Knows manifests and Cards; loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import NotReady
from shared.registry.card import Card, Metric
from shared.registry.servable import Servable
from shared.registry.weights import Manifest, read_manifest

__all__ = ["card_of", "trained_servables"]

Servables = Mapping[str, type[Servable[Any, Any]]]


def trained_servables(known: Servables, folder: Path) -> dict[str, type[Servable[Any, Any]]]:
    """Servables by name, of all manifests in a folder that one of the known models serves.

    A manifest that can't be read is passed over: `fovea doctor` names it.
    """
    found: dict[str, type[Servable[Any, Any]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            manifest = read_manifest(file)
        except NotReady:
            continue
        base = known.get(manifest.serves or "")
        if base is not None and manifest.name not in known:
            members = {"weights": manifest.name, "card": card_of(base.card, manifest), "__module__": base.__module__}
            found[manifest.name] = type(f"Trained{base.__name__}", (base,), members)
    return found


def card_of(card: Card, manifest: Manifest) -> Card:
    """The Card of a model with other weights: what the paper says stays, what was measured is the manifest's."""
    data = manifest.data.get("data", "your data")
    metrics = tuple(
        Metric(name=name, ours=value, data=f"Real: {data}", note=_interval(manifest, name))
        for name, value in manifest.metrics.items()
    )
    recipe = manifest.recipe.get("name", "a recipe")
    notes = (f"Trained by `fovea train {recipe}` from {manifest.data.get('folder', 'a folder')}: {data}.",)
    return card.model_copy(
        update={
            "name": manifest.name,
            "metrics": metrics,
            "notes": notes,
            "weights": None,
            "sparsity": None,
            "summary": f"{card.name}, trained on {manifest.data.get('folder', 'data of your own')}.",
            "licence": "Code: Apache-2.0. Weights: as the terms of the data that they were trained on allow.",
        }
    )


def _interval(manifest: Manifest, name: str) -> str | None:
    if name not in manifest.intervals:
        return None
    low, high = manifest.intervals[name]
    return f"95 % interval {low:.3f} to {high:.3f}, by bootstrap over pictures."
