"""Our service: the front, the batcher and the ONNX engine around the small model, under uvicorn."""

from pathlib import Path
from typing import Self

from loadtests.bench.model import tiny_model
from loadtests.bench.servers.bench_model import BenchModel, bench_card, serve
from shared.engines.onnx import OnnxEngine
from shared.registry import LoadContext


class Tiny(BenchModel):
    """The small model as a Servable; the bench speaks tensors only."""

    card = bench_card("tiny", "Four convolutions for measuring the platform.")

    @classmethod
    def load(cls, place: LoadContext) -> Self:
        file = Path(place.cache) / "bench-tiny.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_model())
        made = cls()
        made.engine = OnnxEngine(file, threads=1)
        return made


if __name__ == "__main__":
    serve(Tiny)
