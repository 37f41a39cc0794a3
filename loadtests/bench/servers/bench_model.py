"""Parts shared by the services of benches: a model without fields of its own, and the server around one."""

import sys
from collections.abc import Sequence

import uvicorn
from pydantic import BaseModel

from fovea.errors import FoveaError
from shared.registry import CallContext, Card, Paper, Servable
from shared.serving.build_app import build
from shared.settings import settings


class Nothing(BaseModel):
    """The model takes and gives nothing."""


class BenchModel(Servable[Nothing, Nothing]):
    """A model for measuring the platform."""

    In = Out = Nothing

    def predict(self, batch: Sequence[Nothing], run: CallContext) -> list[Nothing | FoveaError]:
        return list(batch)


def bench_card(name: str, summary: str) -> Card:
    """The card of a model that nobody published."""
    paper = Paper(title="none", venue="none", year=2026)
    return Card(name=name, task="echo", summary=summary, paper=paper, licence="Apache-2.0")


def serve(model: type[BenchModel]) -> None:
    """Serve one model on the port that the command line names."""
    app = build("bench", servables={model.card.name: model}, settings=settings())
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
