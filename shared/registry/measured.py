"""Cards of weights: digest, size and figures are those of the manifest, and only those.

Weights that were trained or imported here become Servables of their own: a manifest says which model serves its
weights; a checkpoint that was imported is served by the model that names its network. Loads no weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fovea.errors import NotReady
from shared.registry.card import Card, Metric
from shared.registry.servable import Servable
from shared.registry.weights import Manifest, read_manifest

COUNTS = frozenset({"frames", "empty_frames", "pictures", "crops", "pairs", "clean_pairs", "scenes", "patches"})
"""How much was measured, which is said next to each figure."""


def measured_card(card: Card, folder: Path, weights: str | None = None) -> Card:
    """A Card with what the manifest of its weights says; the published metrics that it has stay, after ours.

    `weights` is their name where it is not that of the model. Raises NotReady if the folder has no such manifest.
    """
    manifest = read_manifest(folder / f"{weights or card.name}.safetensors")
    metrics = (*measured_metrics(manifest), *card.metrics)
    return card.model_copy(update={"metrics": metrics, "weights": manifest.sha256, "parameters": manifest.parameters})


def measured_metrics(manifest: Manifest) -> tuple[Metric, ...]:
    """The figures of a manifest: each says on what it was measured, and how sure it is."""
    return tuple(
        Metric(name=name, ours=value, data=_measured_on(manifest, name), note=_interval(manifest, name))
        for name, value in manifest.metrics.items()
        if name not in COUNTS
    )


def _measured_on(manifest: Manifest, metric: str) -> str:
    """The held-out pictures, or parts of them; where kinds are distinguished, also those of the other kind."""
    data = manifest.data.get("measured_on") or manifest.data.get("data", "your data")
    kind, _, other = metric.partition("_")
    if kind in {"count", "calibration"} and "confidence" in manifest.constants:
        return f"{data}, every second of them; the others chose the threshold"
    if kind in {"auroc", "warned"}:
        name = other.removeprefix("unlearnt_")
        learnt = "" if name not in manifest.recipe.get("foreign", ()) else ", others of which were learnt"
        return f"{data}, against pictures of {name}{', none of which was learnt' if name != other else learnt}"
    if metric.endswith("_crops") and "crops" in manifest.metrics:
        return f"{data}, {manifest.metrics['crops']:,.0f} crops of them"
    return data


def _interval(manifest: Manifest, name: str) -> str | None:
    found = manifest.intervals.get(name)
    return found and "95 % interval {:.3f} to {:.3f}, by bootstrap over samples.".format(*found)


def trained_servables(
    known: Mapping[str, type[Servable[Any, Any]]], folder: Path
) -> dict[str, type[Servable[Any, Any]]]:
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
            members = {"weights": manifest.name, "card": _card_of(base.card, manifest), "__module__": base.__module__}
            found[manifest.name] = type(f"Trained{base.__name__}", (base,), members)
    return found


def _card_of(card: Card, manifest: Manifest) -> Card:
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
