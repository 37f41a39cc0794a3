"""Vision networks on a card: our ONNX and TensorRT engines against plain ONNX Runtime, which copies in each run."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from fovea.errors import FoveaError
from loadtests.gpu.timing import Row, guard, row_of
from shared.engines.factory import ModelArtifacts, open_engine
from shared.engines.onnx import OnnxEngine
from shared.registry import LoadContext

NETWORKS = ("pranet", "yolo9tr", "rrformer")
_BATCH, _SIDE = 4, 640
_CUDA = "CUDAExecutionProvider"


def time_vision(
    device: torch.device, cache: Path, networks: Sequence[str] = NETWORKS, side: int = _SIDE
) -> Iterator[Row]:
    """Yield each network by plain ONNX Runtime, by our engines, and in half precision."""
    for name in networks:
        yield from guard("vision", name, "all", _time_network(name, device, cache, side))


def _time_network(name: str, device: torch.device, cache: Path, side: int) -> Iterator[Row]:
    yield from time_graph(name, _graph(name, cache), device, cache, side)


def time_graph(name: str, graph: Path, device: torch.device, cache: Path, side: int = _SIDE) -> Iterator[Row]:
    """Yield one graph."""
    cases: tuple[tuple[Literal["onnx", "tensorrt"], str], ...]
    cases = ("onnx", "fp32"), ("onnx", "fp16"), ("tensorrt", "fp16")
    plain, inputs = _plain_session(graph, device), OnnxEngine(graph).inputs
    feeds = {
        one.name: np.random.default_rng(0).normal(size=_shape(one.shape, side)).astype(np.float32)
        for one in plain.get_inputs()
    }
    if device.type == "cuda" and _CUDA not in plain.get_providers():  # it goes to the processor silently
        yield Row("vision", name, "ONNX Runtime", note=f"{_CUDA} did not start")
    else:
        yield row_of("vision", name, "ONNX Runtime", functools.partial(plain.run, None, feeds), torch.device("cpu"))
    for engine, precision in cases:
        by = f"ours, {engine}, {precision}"
        context: Any = LoadContext(
            device=str(device), engine=engine, cache=cache, options={"vision_precision": precision}
        )
        try:
            made = open_engine(context, ModelArtifacts(name, inputs, graph=lambda: graph))
        except FoveaError as error:
            yield Row("vision", name, by, note=error.detail)
            continue
        # A run ends with the answer on the host, so the host's clock is the right one.
        yield row_of("vision", name, by, functools.partial(made.run, feeds), torch.device("cpu"))
        made.close()


def _plain_session(graph: Path, device: torch.device) -> Any:
    providers = [_CUDA] if device.type == "cuda" else []
    return onnxruntime.InferenceSession(str(graph), providers=[*providers, "CPUExecutionProvider"])


def _shape(axes: Sequence[Any], side: int) -> list[int]:
    sizes = [_BATCH, *(side if axis > 1 else _BATCH for axis in range(1, len(axes)))]
    return [n if isinstance(n, int) else size for n, size in zip(axes, sizes, strict=True)]


def _graph(name: str, cache: Path) -> Path:
    from shared.vision.export_cli import find_exportable, read_exportable  # noqa: PLC0415  # it imports all services

    kind = find_exportable(name)
    return next(iter(kind.all_artifacts(*read_exportable(kind), cache))).graph()
