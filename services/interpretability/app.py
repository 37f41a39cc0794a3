"""App of the service: experiments are found by scanning the package, and each has a route of its own."""

from services.interpretability.routes import build_router
from shared.registry.discovery import servables
from shared.serving.build_app import build

DEFAULT = "head-patterns"
"""The experiment of requests to `/v1/probe` that name none: one forward, and a result on any model."""

_experiments = servables("interpretability")
_ordered = {DEFAULT: _experiments[DEFAULT], **_experiments}
app = build("interpretability", routers=[build_router(_ordered)], servables=_ordered)
