"""The app of `relevance-judge`: what its rooms hold is found by the package scan."""

from shared.serving.app import build

__all__ = ["app"]

app = build("relevance-judge")
