"""The committed classifiers of clothes: right on their sample, and aware of most of what shows no clothes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.detection.models.fasternet import FasterNetClassifier
from services.detection.models.patnet import PATNetClassifier
from shared.api.classes import ClassifyIn
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights


@pytest.fixture(scope="module", params=[PATNetClassifier, FasterNetClassifier])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("place")
    loaded = request.param.load(LoadContext(engine="torch", cache=home, weights=home / "none", threads=1))
    yield loaded
    loaded.close()


def test_the_card_names_the_kinds_of_pictures_that_its_warnings_miss(served: Any) -> None:
    metrics = read_weights(served.folder / f"{served.weights}.safetensors").manifest.metrics
    weak = [name for name, value in metrics.items() if name.startswith("auroc_") and value < 0.95]
    assert weak
    assert all(name in served.card.notes[0] for name in weak)


def test_the_shoes_of_the_sample_are_named_without_a_warning(served: Any) -> None:
    (answer,) = served.predict([served.example()], CallContext())
    assert answer.results[0].label == "shoes"
    assert answer.warnings == []


@pytest.mark.parametrize("name", ["smear", "pollen", "pavement"])
def test_cells_pollen_and_roads_are_answered_with_a_warning(served: Any, name: str) -> None:
    picture = Path(__file__).parents[1] / "models" / f"{name}.jpg"
    (answer,) = served.predict([ClassifyIn(image=picture.read_bytes())], CallContext())
    assert "unlike those" in answer.warnings[0]
