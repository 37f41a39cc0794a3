"""The committed blood smear detector: described truly, right on its sample, and aware of what is no smear."""

import pytest

from services.detection.models.hieraedgenet import HieraEdgeNetBoxDetector
from services.detection.models.hieraedgenet_cells import HieraEdgeNetCellsBoxDetector
from shared.api.boxes import DetectIn
from shared.registry import CallContext, LoadContext


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    servable = HieraEdgeNetCellsBoxDetector.load(
        LoadContext(cache=home / "cache", weights=home / "none", threads=1, engine="torch")
    )
    yield servable
    servable.close()


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
