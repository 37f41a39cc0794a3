"""App of the service relevance-judge: judges, found by the package scan, and routes for what needs no model."""

from services.relevance_judge.routes import rerank, router
from shared.registry.discovery import servables
from shared.serving.build_app import build

DEFAULT = "similarity"
"""Judge of requests that name none: it works with the language model that comes with Fovea."""

_found = servables("relevance-judge")
app = build("relevance-judge", routers=[router, rerank.router], servables={DEFAULT: _found[DEFAULT], **_found})
