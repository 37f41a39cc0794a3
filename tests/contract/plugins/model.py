"""A served model: a Card and the name of its weights."""

from services.medical_seg.segmenter import Segmenter
from shared.registry import Card, Paper

__all__ = ["ColourSegmenter"]


class ColourSegmenter(Segmenter):
    """Marks what is red."""

    weights = "toy-colour"
    card = Card(
        name="toy-colour", task="segment", summary="Marks red pixels.",
        paper=Paper(title="Colours", venue="none", year=2026), licence="Apache-2.0", weights="DIGEST",
        parameters=28, example={"threshold": 0.5},
    )  # fmt: skip
