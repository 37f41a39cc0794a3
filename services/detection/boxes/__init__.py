"""Boxes in pictures: geometry, NMS, letterbox, tiling, tracking, drawing and the formats they are exported in."""
