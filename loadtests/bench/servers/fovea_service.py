"""Our service: the front, the batcher and the ONNX engine around the small model, under uvicorn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import uvicorn
from pydantic import BaseModel

from loadtests.bench.model import tiny_model
from shared.engines.onnx import OnnxEngine
from shared.registry import CallContext, Card, LoadContext, Paper, Servable
from shared.serving.build_app import build
from shared.settings import settings


class Nothing(BaseModel):
    """The bench speaks tensors only."""


class Tiny(Servable[Nothing, Nothing]):
    """The small model as a Servable."""

    card = Card(
        name="tiny",
        task="echo",
        summary="Four convolutions for measuring the platform.",
        paper=Paper(title="none", venue="none", year=2026),
        licence="Apache-2.0",
    )
    In = Out = Nothing

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        """Write the graph once and open it on one thread."""
        file = Path(place.cache) / "bench-tiny.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_model())
        made = cls()
        made.engine = OnnxEngine(file, threads=1)
        return made

    def predict(self, batch: Sequence[Nothing], run: CallContext) -> list[Nothing]:
        """Nothing to predict without tensors."""
        return list(batch)


if __name__ == "__main__":
    app = build("bench", servables={"tiny": Tiny}, settings=settings())
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
