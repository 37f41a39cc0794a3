"""A served model: a Card, the name of its weights and where they are."""

from pathlib import Path

from services.medical_seg.segmenter import Segmenter
from shared.registry import Card, Paper


class ColourSegmenter(Segmenter):
    """Marks what is red."""

    weights = "toy-colour"
    folder = Path(__file__).parent / "weights"
    card = Card(
        name="toy-colour", task="segment", summary="Marks red pixels.",
        paper=Paper(title="Colours", venue="none", year=2026), licence="Apache-2.0", weights="DIGEST",
        parameters=28, example={"threshold": 0.5},
    )  # fmt: skip
