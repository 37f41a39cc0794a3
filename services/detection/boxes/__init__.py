"""Boxes in pictures: NMS, letterbox, tiling, tracking, drawing and the formats they are exported in."""

from services.detection.boxes.letterbox import letterbox, unletterbox
from services.detection.boxes.nms import nms

__all__ = ["letterbox", "nms", "unletterbox"]
