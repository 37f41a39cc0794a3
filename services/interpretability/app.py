"""The app of `interpretability`: experiments are found by the package scan, and each has a path of its own."""

from services.interpretability.routes import build_router
from shared.registry.discovery import servables
from shared.serving.build_app import build

__all__ = ["DEFAULT", "app"]

DEFAULT = "head-patterns"
"""The experiment of requests to `/v1/probe` that name none: one forward, and something to see on any model."""

_found = servables("interpretability")
_ordered = {DEFAULT: _found[DEFAULT], **_found}
app = build("interpretability", routers=[build_router(_ordered)], servables=_ordered)
