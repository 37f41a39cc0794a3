"""TensorRT engine, through ONNX Runtime's provider; built engines go into the cache. Needs an NVIDIA GPU."""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from fovea.api.tensors import TensorSpec
from fovea.errors import NotReady
from shared.engines.gpu_providers import BuiltEngines, Precision, Provider, cuda_provider, tensorrt_provider
from shared.engines.onnx import OnnxEngine
from shared.storage import ObjectStore

_PROVIDER = "TensorrtExecutionProvider"

_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
"""Libraries that the provider loads by name; as wheels bring it, it lies where the loader does not look."""


class TensorRTEngine(OnnxEngine):
    """Runs a graph with TensorRT, and the parts that TensorRT can't with CUDA.

    Args:
        graph: The ONNX file; its name should hold its digest, for engines in the cache are named after the graph.
        device: `cuda` or `cuda:N`.
        cache: Folder for built engines; the first start takes minutes, later ones read them.
        threads: Intra-op threads of what is left to the CPU.
        inputs: The graph's, -1 for axes of any length: engines are built for a range of them.
        precision: fp16 lets TensorRT choose half precision where it is faster.
        objects: The object store, through which nodes share built engines; None shares nothing.

    Raises:
        NotReady: There is no TensorRT here; the detail says what is missing.
    """

    name = "tensorrt"

    def __init__(
        self,
        graph: Path | bytes,
        *,
        device: str = "cuda",
        cache: Path,
        threads: int = 0,
        inputs: Sequence[TensorSpec] = (),
        precision: Precision = "fp32",
        objects: ObjectStore | None = None,
    ) -> None:
        if (lack := missing()) is not None:
            raise NotReady(f"TensorRT is not available: {lack}.", hint="Choose the engine `onnx` or `auto`.")
        name = graph.stem if isinstance(graph, Path) else "unnamed"
        self._built = BuiltEngines(cache / "tensorrt", f"{name}-{precision}", objects)
        self._built.fetch()
        super().__init__(graph, threads=threads, providers=_providers(device, self._built, inputs, precision))
        self._built.share()

    def close(self) -> None:
        self._built.share()
        super().close()


def missing() -> str | None:
    """The part of TensorRT that is missing on this machine, or None; only opening a graph tests the driver."""
    if _PROVIDER not in onnxruntime.get_available_providers():
        return f"this build of ONNX Runtime has no {_PROVIDER} (the extra `gpu` brings it)"
    try:
        _load_libraries()
    except OSError as error:
        return f"{error} (the extra `tensorrt` brings tensorrt-cu13-libs)"
    return None


def _load_libraries() -> None:
    """Load TensorRT, CUDA and cuDNN from their wheels where they are installed, else from where the loader looks.

    Raises OSError: TensorRT is not there.
    """
    onnxruntime.preload_dlls(directory="")
    spec = importlib.util.find_spec("tensorrt_libs")
    folder = Path(next(iter(spec.submodule_search_locations or ("",)))) if spec else Path()
    for name in _LIBRARIES:
        file = folder / name
        ctypes.CDLL(str(file) if file.is_file() else name, mode=ctypes.RTLD_GLOBAL)


def _providers(device: str, built: BuiltEngines, inputs: Sequence[TensorSpec], precision: Precision) -> list[Provider]:
    index = int(device.partition(":")[2] or 0)
    first = tensorrt_provider(index, built.folder, inputs, precision)
    return [first, cuda_provider(index), ("CPUExecutionProvider", {})]
