"""Web console: server-rendered pages with native custom elements; it uses the gateway only through its HTTP routes."""

from starlette.routing import BaseRoute

from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.pages import Console
from services.gateway.console.sign_in import SignIn
from shared.settings import Settings

__all__ = ["routes"]


def routes(settings: Settings) -> list[BaseRoute]:
    """Build the Starlette routes of the console.

    The app that they are added to answers `/v1/models` for them, in process and with the reader's own key, and adds the
    security headers of HTML answers.
    """
    signs_in = bool(settings.auth == "keys" and settings.oidc_issuer and settings.oidc_client_id)
    console = Console(
        InProcessClient(), keys=settings.auth == "keys", max_body_bytes=settings.max_body_bytes, signs_in=signs_in
    )
    return [*(SignIn(settings).routes() if signs_in else ()), *console.routes()]
