"""The web console: server-rendered pages with native custom elements. Knows the gateway only by its HTTP surface."""

from __future__ import annotations

from starlette.routing import BaseRoute

from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.pages import Console
from shared.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[BaseRoute]:
    """Starlette routes of the console.

    The app that they are added to must answer `/v1/models` with all its checks on: pages ask it in process, with the
    reader's own key. Security headers of HTML answers are that app's too.
    """
    return [*Console(InProcessClient(), keys=settings.auth == "keys").routes()]
