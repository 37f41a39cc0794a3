"""The forms in which others take boxes: CSV, COCO JSON, YOLO text, and an archive of crops.

Knows answers and pictures as arrays; knows no network.
"""

import io
import json
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from fovea.api.boxes import Detection, DetectOut
from fovea.api.csv_form import format_csv
from services.detection.boxes.drawing import crop_box
from shared.vision.draw import encode

CSV, COCO, YOLO, CROPS = "text/csv", "application/vnd.coco+json", "text/plain", "application/zip"

_COLUMNS = ("id", "class_id", "label", "score", "x1", "y1", "x2", "y2", "radius_px", "area_px", "radius_um", "area_um2")


def to_csv(answer: DetectOut) -> bytes:
    """CSV, one row a detection."""
    rows: list[tuple[object, ...]] = [_COLUMNS]
    for index, each in enumerate(answer.detections):
        um = (each.microns.radius, each.microns.area) if each.microns else ("", "")
        rows.append((index, each.class_id, each.label, each.score, *each.box, each.radius, each.area, *um))
    return format_csv(rows).encode()


def to_coco(answer: DetectOut, names: Sequence[str]) -> bytes:
    """COCO JSON with one image; ids from 1, boxes as x, y, width, height."""
    found = [_annotation(index, each) for index, each in enumerate(answer.detections, start=1)]
    image = {"id": 1, "file_name": "image", "width": answer.width, "height": answer.height}
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    info = {"description": f"{answer.model} {answer.version}"}
    return json.dumps({"info": info, "images": [image], "categories": categories, "annotations": found}).encode()


def _annotation(index: int, each: Detection) -> dict[str, object]:
    x1, y1, x2, y2 = each.box
    box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
    return {
        "id": index, "image_id": 1, "category_id": each.class_id, "bbox": box, "area": each.area, "iscrowd": 0,
        "score": each.score,
    }  # fmt: skip


def to_yolo(answer: DetectOut) -> bytes:
    """YOLO text, one line a detection: class, centre and size as shares of the picture, score."""
    lines = []
    for each in answer.detections:
        x1, y1, x2, y2 = each.box
        numbers = (
            (x1 + x2) / 2 / answer.width,
            (y1 + y2) / 2 / answer.height,
            (x2 - x1) / answer.width,
            (y2 - y1) / answer.height,
        )
        lines.append(f"{each.class_id} {' '.join(f'{number:.6f}' for number in numbers)} {each.score:.5f}\n")
    return "".join(lines).encode()


def to_crops_zip(answer: DetectOut, pixels: np.ndarray) -> bytes:
    """A zip of PNG crops, a folder per class."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for index, each in enumerate(answer.detections):
            folder = re.sub(r"[^\w.-]+", "_", each.label).lstrip(".") or "class"
            name = f"{folder}/{index:04d}_{each.score:.2f}.png"
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), encode(crop_box(pixels, each.box)))
    return out.getvalue()
