"""The console's page Leaderboard: attention methods at equal bytes on RULER-form tasks."""

from pathlib import Path

from starlette.requests import Request

from fovea_lab.ruler.samples.task import OFFLINE
from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.page import Facts, Page

COLUMNS = (
    ("method", "Method"), ("budget", "Budget"), ("bytes", "Bytes"), ("mean", "Mean"), ("low", "95 %"),
    ("difference", "Against dense"), ("worse", "Worse / better"), ("n", "n"),
)  # fmt: skip
"""Columns of the ranking: key in the report, label."""


async def fetch_choices(client: InProcessClient, request: Request) -> Facts:
    """Fetch the chat models and the attention methods to choose from."""
    models = [entry.id for entry in await client.models(request) if entry.task == "chat"]
    methods = [one["name"] for one in await client.methods(request)] if models else []
    return {
        "models": models,
        "methods": [name for name in methods if name != "dense"],
        "tasks": OFFLINE,
        "columns": COLUMNS,
    }


PAGE = Page(
    title="Leaderboard",
    folder=Path(__file__).parent,
    module="leaderboard.js",
    icon="card",
    group="Evaluate",
    fetch=fetch_choices,
)
