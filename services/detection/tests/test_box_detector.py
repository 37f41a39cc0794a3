"""The generic detector as a Servable: options, forms, slices, and what it says of bad options."""

import csv
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from fovea.api.boxes import DetectIn, DetectOut
from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption, TooLarge
from services.detection.boxes.drawing import class_colour
from services.detection.servables.box_detector import BoxDetector
from shared.registry import CallContext
from shared.vision.draw import encode
from shared.vision.servable import DataConfig
from tests.harness.models import toy_card
from tests.harness.rendering import predict_as

NAMES = ("crack", "hole", "=patch")
CARD = toy_card("toy-detector", "detect")


@dataclass
class Blobs:
    """An engine that finds dark squares of 16 pixels exactly: what is asked of it is known to the test."""

    name: str = "toy"
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="images", datatype="FP32", shape=(-1, 3, -1, -1)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="predictions", datatype="FP32", shape=(-1, 7, -1)),)
    runs: int = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        found = []
        for picture in feeds["images"]:
            grey = picture.mean(axis=0)
            labels, _ = ndimage.label(grey < 0.3)
            rows = np.zeros((7, 40), np.float32)
            for index, (y, x) in enumerate(ndimage.find_objects(labels)[:40]):
                kind = int(grey[y, x].mean() > 0.1)
                box = ((x.start + x.stop) / 2, (y.start + y.stop) / 2, x.stop - x.start, y.stop - y.start)
                rows[:4, index], rows[4 + kind, index] = box, 0.9 - 0.01 * index
            found.append(rows)
        return {"predictions": np.stack(found)}

    def close(self) -> None:
        """Nothing is held."""


class Toy(BoxDetector):
    card = CARD


def _toy(side: int = 128) -> Toy:
    return Toy(CARD, Blobs(), DataConfig(side, NAMES))


def _squares(
    *corners: tuple[int, int, int], height: int = 96, width: int = 128, side: int = 16, **options: Any
) -> bytes:
    pixels, out = np.full((height, width, 3), 200, np.uint8), io.BytesIO()
    for x, y, shade in corners:
        pixels[y : y + side, x : x + side] = shade
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def _one(detector: BoxDetector, request: DetectIn) -> DetectOut:
    (answer,) = detector.predict([request], CallContext())
    assert isinstance(answer, DetectOut), answer
    return answer


def test_boxes_are_pixels_of_the_original_also_scaled_and_turned_and_sizes_in_the_world_follow():
    answer = _one(_toy(), DetectIn(image=_squares((20, 30, 0), (80, 60, 50))))
    assert [(d.box, d.label, d.class_id, d.radius, d.microns) for d in answer.detections] == [
        ((20, 30, 36, 46), "crack", 0, 8, None), ((80, 60, 96, 76), "hole", 1, 8, None),
    ]  # fmt: skip
    assert (answer.width, answer.height, answer.slices, answer.counts) == (128, 96, 0, {"crack": 1, "hole": 1})
    large = {"height": 192, "width": 256, "side": 32}
    (found,) = _one(_toy(), DetectIn(image=_squares((40, 60, 0), **large))).detections
    np.testing.assert_allclose(found.box, (40, 60, 72, 92), atol=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = _squares((40, 60, 0), **large, exif=exif.tobytes())
    (turned,) = _one(_toy(), DetectIn(image=image)).detections
    np.testing.assert_allclose(turned.box, (192 - 92, 40, 192 - 60, 72), atol=2)
    answer = _one(_toy(), DetectIn(image=_squares((20, 30, 0)), microns_per_pixel=0.5))
    microns = answer.detections[0].microns
    assert (microns.width, microns.height, microns.radius, microns.area) == (8, 8, 4, 64)
    assert (answer.summary["crack"].mean_radius_um, answer.summary["crack"].percent) == (4, 100)
    answer = _one(_toy(), DetectIn(image=_squares((20, 30, 0)), include=("columns", "crops", "letterbox", "overlay")))
    columns = answer.columns
    assert (answer.detections, columns.xyxy, columns.class_names) == ([], [(20, 30, 36, 46)], {0: "crack"})
    assert np.asarray(Image.open(io.BytesIO(answer.crops[0].image))).shape == (16, 16, 3)
    assert (answer.letterbox.ratio, answer.letterbox.height) == (1, 96)


def test_options_choose_what_is_told_and_nothing_found_is_an_answer():
    image = _squares((20, 30, 0), (80, 60, 50))
    toy = _toy()
    assert [d.label for d in _one(toy, DetectIn(image=image, classes=("hole",))).detections] == ["hole"]
    for ids in (("0",), [0], 0):
        asked = DetectIn.model_validate({"image": image, "classes": ids})
        assert [d.label for d in _one(toy, asked).detections] == ["crack"]
    with pytest.raises(ValidationError):
        DetectIn.model_validate({"image": image, "classes": [True]})
    best, all_of_them = (_one(toy, DetectIn(image=image, max_detections=most)) for most in (1, 2))
    assert (best.counts, all_of_them.counts) == ({"crack": 1}, {"crack": 1, "hole": 1})
    assert [text.count("more than max_detections=1") for text in best.warnings] == [1]
    assert all_of_them.warnings == []
    assert len(_one(toy, DetectIn(image=image, confidence=0.895)).detections) == 1
    assert _one(toy, DetectIn(image=image, size=64)).notes[0].startswith("Letterboxed to 64×64")
    (answer,) = _toy().predict([DetectIn(image=_squares(), classes=("whale",))], CallContext())
    assert isinstance(answer, InvalidOption)
    assert answer.field == "classes"
    assert "crack" in str(answer.hint)
    answer = _one(_toy(), DetectIn(image=_squares(), include=("overlay", "crops", "columns", "letterbox")))
    assert (answer.detections, answer.counts, answer.crops, answer.summary) == ([], {}, [], {})
    assert answer.overlay is not None


def test_slices_find_what_is_too_small_for_the_whole_and_tell_an_object_on_their_border_once():
    corners = ((30, 40, 0), (500, 70, 0), (250, 300, 50))
    image = _squares(*corners, height=400, width=640, side=6)
    toy = _toy()
    small = _one(toy, DetectIn(image=image, confidence=0.5))
    sliced = _one(toy, DetectIn(image=image, confidence=0.5, tile=128))
    assert sliced.slices == 24
    assert len(sliced.detections) == 3 > len([d for d in small.detections if abs(d.area - 36) < 8])
    for x, y, _ in corners:
        assert any(np.allclose(d.box, (x, y, x + 6, y + 6), atol=1) for d in sliced.detections)
    pixels = np.full((128, 300, 3), 200, np.uint8)
    pixels[50:70, 60:260] = 0
    answer = _one(_toy(side=128), DetectIn(image=encode(pixels), tile=128))
    assert len(answer.detections) == 1
    np.testing.assert_allclose(answer.detections[0].box, (60, 50, 260, 70), atol=3)
    (answer,) = _toy().predict([DetectIn(image=_squares(height=2400, width=2400), tile=64)], CallContext())
    assert isinstance(answer, TooLarge)
    assert answer.field == "tile"


def _render(media: str, detector: BoxDetector | None = None, **options: Any) -> bytes:
    request = DetectIn(image=_squares((20, 30, 0), (80, 60, 50)), **options)
    _, made = predict_as(detector or _toy(), request, media)
    assert made is not None
    return made


def test_boxes_come_as_tables_coco_yolo_text_drawings_and_crops():
    rows = list(csv.DictReader(io.StringIO(_render("text/csv", microns_per_pixel=2).decode())))
    assert [row["label"] for row in rows] == ["crack", "hole"]
    names = ("x1", "y1", "x2", "y2", "radius_px", "radius_um")
    assert [float(rows[0][name]) for name in names] == [20, 30, 36, 46, 8, 16]
    assert b"'=1+1" in _render("text/csv", Toy(CARD, Blobs(), DataConfig(128, ("=1+1", "b", "c"))))
    assert len(_render("text/csv", include=("columns",)).splitlines()) == 3
    found = json.loads(_render("application/vnd.coco+json"))
    assert [c["name"] for c in found["categories"]] == list(NAMES)
    told = [(a["id"], a["category_id"], a["bbox"]) for a in found["annotations"]]
    assert told == [(1, 0, [20, 30, 16, 16]), (2, 1, [80, 60, 16, 16])]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (128, 96)
    for media in ("image/png", "image/jpeg"):
        pixels = np.asarray(Image.open(io.BytesIO(_render(media, labels=False, stroke=2))).convert("RGB")).astype(int)
        assert pixels.shape == (96, 128, 3)
        assert max(np.abs(pixels[31, 28] - class_colour(0)).max(), np.abs(pixels[61, 88] - class_colour(1)).max()) < 30
    first = _render("text/plain").decode().splitlines()[0].split()
    assert [float(v) for v in first] == pytest.approx([0, 28 / 128, 38 / 96, 16 / 128, 16 / 96, 0.9], abs=1e-5)
    with zipfile.ZipFile(io.BytesIO(_render("application/zip"))) as archive:
        assert archive.namelist() == ["crack/0000_0.90.png", "hole/0001_0.89.png"]
        assert np.asarray(Image.open(archive.open("crack/0000_0.90.png"))).shape == (16, 16, 3)
