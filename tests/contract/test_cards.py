"""Cards of every model with packaged weights say what its manifest says, and what was measured."""

from typing import Any

import pytest

from fovea.api.model import HeadlineMetric
from shared.registry import Servable, servables
from shared.registry.discovery import SERVICES, shipped_weights
from shared.registry.weights import Manifest

FOUND = {name: kind for service in SERVICES for name, kind in servables(service).items()}
MOST_BYTES = 12_000_000


def names_of(kind: type[Servable[Any, Any]]) -> list[str]:
    told = getattr(kind, "weights", kind.card.name)
    return [name for name in ([told] if isinstance(told, str) else told) if name in shipped_weights()]


def manifest_of(name: str) -> Manifest:
    return Manifest.model_validate_json(shipped_weights()[name].with_suffix(".json").read_text("utf8"))


WITH_CARD = [name for name, kind in FOUND.items() if kind.card.weights is not None and names_of(kind)]


@pytest.mark.parametrize("name", WITH_CARD)
def test_a_card_repeats_its_manifest_and_says_on_which_data_it_was_measured(name):
    card, manifests = FOUND[name].card, [manifest_of(one) for one in names_of(FOUND[name])]
    assert card.weights in {manifest.sha256 for manifest in manifests}
    assert card.parameters == sum(manifest.parameters or 0 for manifest in manifests)
    measured = {name: value for manifest in manifests for name, value in manifest.metrics.items()}
    shown = {metric.name: metric.ours for metric in card.metrics if metric.ours is not None}
    assert shown
    assert shown == {name: measured.get(name) for name in shown}
    figures = [metric for metric in FOUND[name].card.metrics if metric.ours is not None]
    assert all("(real)" in metric.data or "synthetic" in metric.data for metric in figures)
    real = [metric.note or "" for metric in figures if "(real)" in metric.data]
    assert not real or any("95 % interval" in note for note in real), "of few pictures, how sure the figures are"


MADE = (
    "hieraedgenet-synthetic-pollen", "bmn", "bmn-csa", "fovea-planner", "oat", "fovea-landmark-recall",
    "fovea-titans-lmm", "fovea-titans-mac", "fovea-titans-mag", "fovea-titans-mal",
)  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_figure_on_made_data_is_called_synthetic(name):
    found = [each for each in FOUND[name].card.metrics if each.paper is None or each.ours is not None]
    assert found
    assert [each for each in found if not HeadlineMetric(each.name, 0.5, None, each.data).is_synthetic] == []


@pytest.mark.parametrize("name", sorted({one for kind in FOUND.values() for one in names_of(kind)}))
def test_weights_are_small_and_name_no_folder_of_a_machine(name):
    manifest = manifest_of(name)
    assert manifest.bytes <= MOST_BYTES
    places = [str(value) for value in manifest.recipe.values() if isinstance(value, str)]
    assert not [place for place in places if place.startswith(("/", "~", "."))]
