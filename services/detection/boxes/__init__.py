"""Boxes in pictures: NMS, letterbox, tiling, tracking, drawing and the formats they are exported in."""

import importlib
from typing import TYPE_CHECKING, Any

from services.detection.boxes.letterbox import letterbox, unletterbox
from services.detection.boxes.nms import nms

if TYPE_CHECKING:
    from services.detection.boxes.geometry import complete_iou, decode

__all__ = ["complete_iou", "decode", "letterbox", "nms", "unletterbox"]


def __getattr__(name: str) -> Any:
    if name in {"complete_iou", "decode"}:  # they need torch, which serving does without
        return getattr(importlib.import_module("services.detection.boxes.geometry"), name)
    raise AttributeError(name)
