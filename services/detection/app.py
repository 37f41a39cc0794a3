"""The app of `detection`: models are found by the package scan; routes of plug-ins are added by `build`."""

from shared.registry.discovery import servables
from shared.serving.build_app import build

DEFAULTS = ("yolo9tr", "patnet")
"""Models of requests that name none: the first of a task is its default, and these know photographs."""

_found = servables("detection")
_first = {name: _found[name] for name in DEFAULTS if name in _found}
app = build("detection", servables={**_first, **_found})
