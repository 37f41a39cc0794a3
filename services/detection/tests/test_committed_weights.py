"""Weights of this service: those in the tree, and models added at run time."""

import shutil
from pathlib import Path

import pytest

from fovea.api.boxes import DetectIn
from fovea.api.classes import ClassifyIn
from services.detection.models.fasternet import FasterNetClassifier
from services.detection.models.hieraedgenet_cells import HieraEdgeNetCellsBoxDetector
from services.detection.models.patnet import PATNetClassifier
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_manifest, read_weights
from shared.serving import build_app
from tests.harness.models import client_of
from tests.harness.waiting import wait_until

SERVICES = Path(__file__).parents[2]
CLOTHES = ("detection/models/smear", "detection/models/pollen", "detection/models/pavement")
FOREIGN = {
    HieraEdgeNetCellsBoxDetector: ("detection/models/pollen", "detection/models/pavement"),
    PATNetClassifier: CLOTHES,
    FasterNetClassifier: CLOTHES,
    Yolo9trBoxDetector: (
        "detection/models/smear", "detection/models/clothes", "detection/models/pollen", "medical_seg/models/frame",
    ),
}  # fmt: skip
"""Models and pictures unlike those of their training."""


@pytest.fixture(scope="module", params=FOREIGN)
def served(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    loaded = request.param.load(LoadContext(engine="torch", cache=home, weights=home / "none", threads=1))
    yield loaded
    loaded.close()


def test_the_sample_is_answered_rightly_and_pictures_of_other_things_with_a_warning(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert answer.warnings == []
    if isinstance(served, HieraEdgeNetCellsBoxDetector):
        cells = answer.counts
        assert (cells["WBC"], 15 <= cells["RBC"] <= 27, 1 <= cells["Platelets"] <= 6) == (1, True, True), cells
    elif isinstance(served, Yolo9trBoxDetector):
        assert {each.label for each in answer.detections} in ({"crack"}, {"pothole"}, {"crack", "pothole"})
    else:
        assert answer.results[0].label == "shoes"
    kind = DetectIn if served.card.task == "detect" else ClassifyIn
    pictures = [(SERVICES / f"{name}.jpg").read_bytes() for name in FOREIGN[type(served)]]
    answers = served.predict([kind(image=picture) for picture in pictures], CallContext())
    assert all("unlike those" in answer.warnings[0] for answer in answers)


@pytest.mark.parametrize("served", [HieraEdgeNetCellsBoxDetector], indirect=True)
def test_scores_are_calibrated_and_a_request_may_ask_for_fainter_ones(served):
    example, least = served.example(), served.details()["confidence"]
    asked = (example, example.model_copy(update={"confidence": 0.1}))
    (told,), (more,) = (served.predict([one], CallContext()) for one in asked)
    assert min(each.score for each in told.detections) > least
    assert len(more.detections) > len(told.detections)
    assert {each.label for each in more.detections} <= set(served.details()["classes"])
    assert served.details()["defaults"]["size"] == served.config.side
    assert min(each.score for each in more.detections) > 0.1


@pytest.mark.parametrize("kind", [PATNetClassifier, FasterNetClassifier])
def test_the_card_names_the_kinds_of_pictures_that_its_warnings_miss(kind):
    metrics = read_weights(kind.folder / f"{kind.weights}.safetensors").manifest.metrics
    weak = [name for name, value in metrics.items() if name.startswith("auroc_") and value < 0.95]
    assert weak
    assert all(name in kind.card.notes[0] for name in weak)


SHIPPED = FasterNetClassifier.folder / "fasternet.safetensors"


def test_a_model_trained_meanwhile_is_served_and_a_broken_one_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(build_app, "FOLDER_POLL_S", 0.05)
    manifest = read_manifest(SHIPPED).model_copy(update={"serves": "fasternet"})

    def write(name, **changed):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHIPPED, folder / f"{name}.safetensors")
        draft = folder / "draft"
        draft.write_text(manifest.model_copy(update={"name": name, **changed}).model_dump_json())
        draft.replace(folder / f"{name}.json")

    with client_of(tmp_path, "detection", {"fasternet": FasterNetClassifier}) as client:
        folder = client.app.state.settings.weights_dir
        example = client.get("/v1/models/fasternet/example").json()
        assert client.post("/v1/classify", json={**example, "model": "mine"}).status_code == 404
        write("broken", sha256="0" * 64)
        write("mine", data={"folder": "matches"})
        wait_until(lambda: client.get("/v1/models/mine").status_code == 200, 60)
        assert "matches" in client.get("/v1/models/mine").json()["summary"]
        mine, own = (client.post("/v1/classify", json={**example, "model": name}) for name in ("mine", "fasternet"))
        assert mine.json()["results"][0]["probability"] == own.json()["results"][0]["probability"]
        assert client.get("/readyz").status_code == 200
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["fasternet", "mine"]
        write("mine", data={"folder": "more matches"})
        wait_until(lambda: "more" in client.get("/v1/models/mine").json()["summary"], 60)
        assert client.post("/v1/classify", json={**example, "model": "mine"}).status_code == 200
