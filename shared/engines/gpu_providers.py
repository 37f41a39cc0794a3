"""Execution providers of ONNX Runtime on an NVIDIA GPU: options, profiles for axes of any length, built engines.

TensorRT builds an engine per graph, card and version, which takes minutes; built ones are kept in the cache folder and
shared through the object store. Knows options and files; knows nothing about graphs' contents or sessions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fovea.api.tensors import TensorSpec
from fovea.errors import FoveaError
from shared.storage import ObjectStore
from shared.telemetry import log

Provider = tuple[str, dict[str, Any]]
"""Name and options of an execution provider."""

Precision = Literal["fp32", "fp16"]

Range = tuple[int, int, int]
"""Shortest, usual and longest length of an axis."""

_BATCH: Range = (1, 4, 16)
_SIDE: Range = (32, 640, 2048)
_OTHER: Range = (1, 32, 256)
"""Shapes that an engine is built for: batches, sides of pictures, and other axes. A length outside makes TensorRT build
another engine while the request waits."""

_PICTURE_AXES = 4


def cuda_provider(index: int) -> Provider:
    """CUDA: memory as it is asked for, convolutions by a rule instead of timing each size of picture, true float32."""
    return "CUDAExecutionProvider", {
        "device_id": index,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",  # has the mantissa of float16, which `vision_precision` offers
    }


def tensorrt_provider(index: int, folder: Path, inputs: Sequence[TensorSpec], precision: Precision) -> Provider:
    """TensorRT: engines and timings in a folder, and a profile where axes are of any length."""
    options = {
        "device_id": index,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": precision == "fp16",
    }
    return "TensorrtExecutionProvider", options | profile(inputs)


def profile(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the options that name the shortest, usual and longest shapes; none where all axes are fixed."""
    if not any(-1 in spec.shape for spec in inputs):
        return {}
    named = {}
    for which, name in enumerate(("min", "opt", "max")):
        shapes = (f"{spec.name}:{'x'.join(str(n) for n in _lengths(spec, which))}" for spec in inputs)
        named[f"trt_profile_{name}_shapes"] = ",".join(shapes)
    return named


def _lengths(spec: TensorSpec, which: int) -> list[int]:
    return [n if n != -1 else _range(spec, axis)[which] for axis, n in enumerate(spec.shape)]


def _range(spec: TensorSpec, axis: int) -> Range:
    if axis == 0:
        return _BATCH
    return _SIDE if len(spec.shape) == _PICTURE_AXES and axis > 1 else _OTHER


class BuiltEngines:
    """Engines and timings of one graph that TensorRT built: in a folder, and in the object store for other nodes.

    The provider reads and writes them in `folder`, and adds card and version to the graph's `name`, which has its
    digest. Without `objects` nothing is shared.
    """

    def __init__(self, folder: Path, name: str, objects: ObjectStore | None) -> None:
        self.folder = folder / name
        self._objects = None if objects is None else objects.under("tensorrt", name)
        self._shared: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self) -> None:
        """Bring what others built; without it, engines are built here."""
        if self._objects is None:
            return
        try:
            for name in self._objects.list_names():
                self._shared.add(name)
                if not (self.folder / name).exists():
                    self._objects.download(name, self.folder / name)
        except FoveaError as error:
            log().warning("built engines are not fetched", folder=self.folder.name, reason=error.detail)

    def share(self) -> None:
        """Store what was built here; timings grow, so they are stored again."""
        if self._objects is None:
            return
        try:
            for file in sorted(self.folder.iterdir()):
                if file.is_file() and (file.name not in self._shared or file.suffix == ".timing"):
                    self._objects.upload(file.name, file)
                    self._shared.add(file.name)
        except FoveaError as error:
            log().warning("built engines are not shared", folder=self.folder.name, reason=error.detail)
