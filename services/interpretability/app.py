"""App of the service: experiments are found by scan, each with a route of its own that no plug-in can take away."""

from services.interpretability.routes import build_router
from shared.registry.discovery import servables
from shared.serving.build_app import build

DEFAULT = "head-patterns"
"""The experiment of requests to `/v1/probe` that name none: one forward, and a result on any model."""

_found = sorted(servables("interpretability").items(), key=lambda item: not item[1].__module__.startswith("services."))
_ordered = {DEFAULT: dict(_found)[DEFAULT], **dict(_found)}
app = build("interpretability", routers=[build_router(_ordered)], servables=_ordered)
