"""`fovea detect`: what it asks, what it prints and writes, and what one bad picture costs."""

import json

import pytest

from fovea.cli.commands import detect as verb
from fovea.tests.answering_gateway import AnsweringGateway
from services.gateway.tests.stub_service import photograph
from shared.api.boxes import DetectIn, Detection, DetectOut
from shared.api.timings import Times
from shared.errors import InvalidOption


def answer():
    found = Detection(box=(1, 2, 5, 6), score=0.9, label="crack", class_id=0, area=16, radius=2)
    return DetectOut(
        model="m", version="1", engine="onnx", width=8, height=8, detections=[found, found], counts={"crack": 2},
        times=Times(),
    )  # fmt: skip


@pytest.fixture
def gateway(monkeypatch):
    made = AnsweringGateway(DetectIn, lambda _, accept: accept.encode() if accept else answer().model_dump(mode="json"))
    monkeypatch.setattr(verb, "Connection", lambda *_: made)
    return made


def detect(*words, options=None, **more):
    verb._detect([str(word) for word in words], options or {}, **more)


def test_what_was_found_is_counted_by_class(gateway, folder, capsys):
    detect(folder / "a.jpg", options={"confidence": 0.4})
    assert capsys.readouterr().out == f"{folder / 'a.jpg'}: 2 × crack\n"
    assert gateway.asked == [("detect", {"confidence": 0.4, "model": "default-detect"}, None)]


def test_answer_and_further_forms_are_written_where_asked(gateway, folder, capsys):
    detect(folder / "a.jpg", output=folder / "out", also=["csv", "coco", "crops"], as_json=True)
    assert json.loads((folder / "out" / "a.json").read_text())["detections"][0]["label"] == "crack"
    written = {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.suffix != ".json"}
    assert written == {"a.boxes.jpg": b"image/jpeg", "a.csv": b"text/csv", "a.crops.zip": b"application/zip"}
    assert json.loads(capsys.readouterr().out)["file"].endswith("a.jpg")


def test_detections_of_many_pictures_are_one_coco_file(gateway, folder):
    (folder / "b.jpg").write_bytes(photograph())
    detect(folder, output=folder / "out", also=["coco"])
    held = json.loads((folder / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in held["images"]] == ["a.jpg", "b.jpg"]
    assert held["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [],
        "score": 0.9,
    }  # fmt: skip
    assert held["categories"] == [{"id": 1, "name": "crack"}]
    assert [row["image_id"] for row in held["annotations"]] == [1, 1, 2, 2]


@pytest.mark.parametrize(("also", "output"), [(["pdf"], "out"), (["csv"], None)])
def test_a_form_that_there_is_not_or_no_folder_is_refused(gateway, folder, also, output):
    with pytest.raises(InvalidOption) as refused:
        detect(folder / "a.jpg", also=also, output=output and folder / output)
    assert refused.value.field == "also"
    assert gateway.asked == []
