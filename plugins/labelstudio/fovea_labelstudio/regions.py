"""Answers of the picture tasks as regions of Label Studio: boxes, outlines, brushes and choices, with scores.

Label Studio counts in percent of the picture's sides. Knows answers and arrays; knows no HTTP.
"""

import io
import secrets
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fovea.api.boxes import DetectOut
from fovea.api.classes import ClassifyOut
from fovea.api.mask import Contour, SegmentOut
from fovea_labelstudio.brush_codec import encode_brush
from fovea_labelstudio.label_config import ControlTag

Region = dict[str, Any]

OUTLINE_TOLERANCE = 1.0
"""Pixels by which an outline may leave the mask's edge: people can move its corners then."""

MIN_CORNERS = 3


def boxes_to_regions(answer: DetectOut, control: ControlTag) -> list[Region]:
    """A rectangle for each detection whose class has a label."""
    found = []
    for each in answer.detections:
        if (label := control.label_of(each.label)) is None:
            continue
        x1, y1, x2, y2 = each.box
        value = {
            "x": _percent(x1, answer.width),
            "y": _percent(y1, answer.height),
            "width": _percent(x2 - x1, answer.width),
            "height": _percent(y2 - y1, answer.height),
            "rotation": 0,
        }
        found.append(_region(control, label, value, each.score, (answer.width, answer.height)))
    return found


def mask_to_regions(answer: SegmentOut, control: ControlTag) -> list[Region]:
    """The mask as one brush stroke, or the outlines of its parts as polygons (holes can't be said in them)."""
    if answer.empty or not control.labels:
        return []
    label, sizes = control.labels[0], (answer.width, answer.height)
    if control.kind == "brushlabels" and answer.mask is not None:
        mask = np.asarray(Image.open(io.BytesIO(answer.mask)).convert("L")) > 0
        value = {"format": "rle", "rle": encode_brush(mask)}
        return [_region(control, label, value, answer.mean_probability, sizes)]
    found = []
    for contour in answer.contours or ():
        drawn = np.asarray(contour.points, np.int32).reshape(-1, 1, 2)
        corners = cv2.approxPolyDP(drawn, OUTLINE_TOLERANCE, closed=True)[:, 0].tolist()
        if contour.hole or len(corners) < MIN_CORNERS:
            continue
        points = [[_percent(x, answer.width), _percent(y, answer.height)] for x, y in corners]
        found.append(_region(control, label, {"points": points}, _probability(answer, contour), sizes))
    return found


def choices_to_regions(answer: ClassifyOut, control: ControlTag) -> list[Region]:
    """The most likely class of the whole picture that is among the choices."""
    for each in answer.results[0].top if answer.results else ():
        if (label := control.label_of(each.label)) is not None:
            return [_region(control, label, {}, each.probability, (answer.width, answer.height))]
    return []


def _region(control: ControlTag, label: str, value: dict[str, Any], score: float, size: tuple[int, int]) -> Region:
    return {
        "id": secrets.token_hex(5),
        "type": control.kind,
        "from_name": control.name,
        "to_name": control.to_name,
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "score": round(score, 5),
        "value": {**value, control.kind: [label]},
    }


def _probability(answer: SegmentOut, contour: Contour) -> float:
    """Of the part that an outline is of: the one of the same box."""
    corners = np.asarray(contour.points)
    box = (*corners.min(0).tolist(), *corners.max(0).tolist())
    return next((part.probability for part in answer.components if part.box == box), answer.mean_probability)


def _percent(pixels: float, side: int) -> float:
    return round(100 * min(max(pixels / side, 0.0), 1.0), 5)
