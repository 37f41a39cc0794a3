"""The console's page Sessions, and the panel of sessions and documents on the chat page."""

from pathlib import Path

from starlette.requests import Request

from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.page import Facts, Page


async def fetch_chat_models(client: InProcessClient, request: Request) -> Facts:
    """Fetch the chat models, which checks the reader's key; the browser fetches the sessions."""
    return {"models": [entry for entry in await client.models(request) if entry.task == "chat"]}


PAGE = Page(
    title="Sessions",
    folder=Path(__file__).parent,
    module="sessions.js",
    styles=("sessions.css",),
    under="chat",
    icon="fork",
    panel="panel.html",
    fetch=fetch_chat_models,
)
