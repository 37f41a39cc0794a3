"""Boxes in pictures: geometry, NMS, letterbox, tiling, tracking, drawing and the formats they are exported in."""

from services.detection.boxes.geometry import complete_iou, decode, overlap
from services.detection.boxes.letterbox import letterbox, unletterbox
from services.detection.boxes.nms import nms

__all__ = ["complete_iou", "decode", "letterbox", "nms", "overlap", "unletterbox"]
