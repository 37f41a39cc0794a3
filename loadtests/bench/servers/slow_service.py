"""Our service around a model that takes 20 ms a request, one after the other, and no processor."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Self

import uvicorn
from pydantic import BaseModel

from shared.registry import CallContext, Card, LoadContext, Paper, Servable
from shared.serving.build_app import build
from shared.settings import settings

MODEL_S = 0.02


class Nothing(BaseModel):
    """The model takes and gives nothing."""


class Slow(Servable[Nothing, Nothing]):
    """A model as slow as a network on a processor of its own."""

    card = Card(
        name="slow",
        task="echo",
        summary="Waits, for measuring the platform.",
        paper=Paper(title="none", venue="none", year=2026),
        licence="Apache-2.0",
    )
    In = Out = Nothing

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Nothing to load."""
        return cls()

    def predict(self, batch: Sequence[Nothing], run: CallContext) -> list[Nothing]:
        """Wait for each of the batch."""
        time.sleep(MODEL_S * len(batch))
        return list(batch)


if __name__ == "__main__":
    app = build("bench", servables={"slow": Slow}, settings=settings())
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
