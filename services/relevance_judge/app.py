"""The app of `relevance-judge`: judges are found by the package scan; what needs no model has routes of its own."""

from services.relevance_judge.routes import router
from shared.registry.discovery import servables
from shared.serving.build_app import build

__all__ = ["DEFAULT", "app"]

DEFAULT = "query-likelihood"
"""The judge of requests that name none: the one that works with the language model that comes with Fovea."""

_found = servables("relevance-judge")
app = build("relevance-judge", routers=[router], servables={DEFAULT: _found[DEFAULT], **_found})
