"""Models that were trained or imported here: weights in the data folder become Servables of their own.

A manifest says which model serves its weights; a checkpoint that was imported is served by the model that names its
network. Knows manifests and Cards; loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.errors import NotReady
from shared.registry.card import Card
from shared.registry.measured import measured_metrics
from shared.registry.servable import Servable
from shared.registry.weights import Manifest, read_manifest

Servables = Mapping[str, type[Servable[Any, Any]]]


def trained_servables(known: Servables, folder: Path) -> dict[str, type[Servable[Any, Any]]]:
    """Servables by name, of all manifests in a folder that one of the known models serves.

    A manifest that can't be read is passed over: `fovea doctor` names it.
    """
    importers = {name: kind for kind in known.values() if (name := getattr(kind, "imports", None)) is not None}
    found: dict[str, type[Servable[Any, Any]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            manifest = read_manifest(file)
        except NotReady:
            continue
        base = known.get(manifest.serves or "") or importers.get(manifest.name)
        if base is not None and manifest.name not in known:
            members = {"weights": manifest.name, "card": card_of(base.card, manifest), "__module__": base.__module__}
            found[manifest.name] = type(f"Trained{base.__name__}", (base,), members)
    return found


def card_of(card: Card, manifest: Manifest) -> Card:
    """The Card of a model with other weights: what the paper says stays, what was measured is the manifest's."""
    facts = {"name": manifest.name, "weights": None, "sparsity": None, "parameters": manifest.parameters}
    if manifest.origin == "imported":
        published = tuple(m.model_copy(update={"ours": None}) for m in card.metrics if m.paper is not None)
        source = manifest.data.get("source", "a checkpoint")
        told = {
            "metrics": published,
            "notes": (f"Imported from {source}.",),
            "summary": f"The network of {card.name}, with imported weights.",
        }
        return card.model_copy(update=facts | told)
    data = manifest.data.get("data", "your data")
    recipe, folder = manifest.recipe.get("name", "a recipe"), manifest.data.get("folder", "a folder")
    terms = manifest.data.get("terms", "as the terms of the data that they were trained on allow")
    told = {
        "metrics": measured_metrics(manifest),
        "notes": (f"Trained by `fovea train {recipe}` from {folder}: {data}.",),
        "summary": f"{card.name}, trained on {manifest.data.get('folder', 'data of your own')}.",
        "licence": f"Code: Apache-2.0. Weights: {terms}.",
    }
    return card.model_copy(update=facts | told)
