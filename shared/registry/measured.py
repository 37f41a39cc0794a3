"""Cards of weights that come with the package: digest, size and figures are those of the manifest, and only those.

Knows manifests and Cards; loads no weights.
"""

from __future__ import annotations

from pathlib import Path

from shared.registry.card import Card, Metric
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
    if kind in {"auroc", "warned"}:
        name = other.removeprefix("unlearnt_")
        learnt = "" if name not in manifest.recipe.get("foreign", ()) else ", others of which were learnt"
        return f"{data}, against pictures of {name}{', none of which was learnt' if name != other else learnt}"
    if metric.endswith("_crops") and "crops" in manifest.metrics:
        return f"{data}, {manifest.metrics['crops']:,.0f} crops of them"
    return data


def _interval(manifest: Manifest, name: str) -> str | None:
    if name not in manifest.intervals:
        return None
    low, high = manifest.intervals[name]
    return f"95 % interval {low:.3f} to {high:.3f}, by bootstrap over pictures."
