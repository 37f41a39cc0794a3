"""Our service around a model that takes 20 ms a request, one after the other, and no processor."""

import time
from collections.abc import Sequence
from typing import Self

from fovea.errors import FoveaError
from loadtests.bench.servers.bench_model import BenchModel, Nothing, bench_card, serve
from shared.registry import CallContext, LoadContext

MODEL_S = 0.02


class Slow(BenchModel):
    """A model as slow as a network on a processor of its own."""

    card = bench_card("slow", "Waits, for measuring the platform.")

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        return cls()

    def predict(self, batch: Sequence[Nothing], run: CallContext) -> list[Nothing | FoveaError]:
        time.sleep(MODEL_S * len(batch))
        return list(batch)


if __name__ == "__main__":
    serve(Slow)
