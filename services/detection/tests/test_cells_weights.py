"""The committed blood smear detector: described truly, right on its sample, and aware of what is no smear."""

from pathlib import Path

import pytest

from services.detection.models.hieraedgenet import HieraEdgeNetBoxDetector
from services.detection.models.hieraedgenet_cells import HieraEdgeNetCellsBoxDetector
from services.detection.recipes.hieraedgenet_cells import HieraEdgeNetCells
from shared.api.boxes import DetectIn
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights

FOLDER = HieraEdgeNetCellsBoxDetector.folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    servable = HieraEdgeNetCellsBoxDetector.load(
        LoadContext(cache=home / "cache", weights=home / "none", threads=1, engine="torch")
    )
    yield servable
    servable.close()


def test_the_manifest_is_one_of_the_recipe_and_names_no_place_of_a_machine():
    manifest = read_weights(FOLDER / "hieraedgenet-cells.safetensors").manifest
    told = dict(manifest.recipe)
    assert told.pop("name") == HieraEdgeNetCells.name
    assert HieraEdgeNetCells.model_validate(told).data == Path("cells")
    assert (manifest.data["title"], manifest.data["terms"], manifest.data["origin"]) == ("BCCD", "MIT", "real")
    assert manifest.bytes <= 12_000_000


def test_the_card_says_what_was_measured_on_what_and_how_sure_it_is():
    manifest, card = read_weights(FOLDER / "hieraedgenet-cells.safetensors").manifest, HieraEdgeNetCellsBoxDetector.card
    assert card.weights == manifest.sha256
    metrics = {metric.name: metric for metric in card.metrics}
    assert metrics["map50"].ours == manifest.metrics["map50"] >= 0.8
    assert metrics["map50"].data == "BCCD (real), 87 held-out pictures"
    assert "95 % interval" in (metrics["map50"].note or "")
    assert metrics["auroc_clothing"].data.endswith("against pictures of clothing")
    assert min(value for name, value in manifest.metrics.items() if name.startswith("auroc_")) >= 0.95
    assert abs(manifest.metrics["count_total_RBC"]) <= 0.1


def test_the_cells_of_the_sample_are_counted_without_a_warning(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert answer.warnings == []
    assert answer.counts["WBC"] == 1
    assert 15 <= answer.counts["RBC"] <= 27
    assert 1 <= answer.counts["Platelets"] <= 6


def test_a_road_and_a_slide_are_answered_with_a_warning(served):
    others = [HieraEdgeNetBoxDetector.sample, HieraEdgeNetBoxDetector.sample.with_name("pavement.jpg")]
    answers = served.predict([DetectIn(image=path.read_bytes()) for path in others], CallContext())
    assert all("unlike those" in answer.warnings[0] for answer in answers)


def test_scores_are_calibrated_and_a_request_may_ask_for_fainter_ones(served):
    example = served.example()
    least = served.details()["confidence"]
    (told,) = served.predict([example], CallContext())
    (more,) = served.predict([example.model_copy(update={"confidence": 0.1})], CallContext())
    assert min(each.score for each in told.detections) > least
    assert len(more.detections) > len(told.detections)
    assert min(each.score for each in more.detections) > 0.1


def test_the_pollen_model_says_that_it_is_synthetic():
    card = HieraEdgeNetBoxDetector.card
    assert "synthetic" in card.name
    assert all("synthetic" in metric.data for metric in card.metrics if metric.ours is not None)
