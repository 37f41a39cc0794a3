"""The app of `detection`: models are found by the package scan; streams of frames have a route of their own."""

from services.detection.video.stream_route import router
from shared.registry.discovery import servables
from shared.serving.build_app import build

__all__ = ["DEFAULT", "app"]

DEFAULT = "yolo9tr"
"""The detector of requests that name none: the first of a task is its default."""

_found = servables("detection")
_first = {DEFAULT: _found[DEFAULT]} if DEFAULT in _found else {}
app = build("detection", routers=[router], servables={**_first, **_found})
