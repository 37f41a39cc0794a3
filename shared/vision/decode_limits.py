"""What a model takes, as bounds for decoding: the smaller of its own limits and the platform's."""

from __future__ import annotations

from shared.registry import Card, LoadContext
from shared.vision.decode import DEFAULT_BOUNDS, DecodeBounds

__all__ = ["decode_bounds"]


def decode_bounds(card: Card, place: LoadContext) -> DecodeBounds:
    """Bounds of the pictures that a served model decodes: sides from its Card, bytes and pixels from `place`."""
    limits, ours = card.limits, DEFAULT_BOUNDS
    return DecodeBounds(
        bytes=int(place.options.get("max_body_bytes", ours.bytes)),
        pixels=int(place.options.get("max_pixels", ours.pixels)),
        min_side=limits.min_side or ours.min_side,
        max_side=limits.max_side,
    )
