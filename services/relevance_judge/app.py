"""The app of `relevance-judge`: judges are found by the package scan; what needs no model has routes of its own."""

from services.relevance_judge.routes import router
from shared.serving.app import build

__all__ = ["app"]

app = build("relevance-judge", routers=[router])
