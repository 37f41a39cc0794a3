"""Half precision: an ONNX graph in float16 next to the one in float32, for CUDA's provider. TensorRT does its own.

Inputs and outputs stay as they are. Knows graphs' files; knows nothing about engines.
"""

import os
from pathlib import Path

from fovea.errors import NotReady

_KEPT = ("Resize", "Range", "Softmax", "LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Cast")
"""Operators that stay in float32: sums and powers leave float16's range, and sizes are counted in float32."""


def halve(graph: Path, cache: Path) -> Path:
    """Return a graph's form in float16, made in the cache folder the first time.

    Raises NotReady: the library `onnx` is not installed, or the graph can't be converted.
    """
    made = cache / f"{graph.stem}-fp16.onnx"
    if made.exists():
        return made
    try:
        import onnx  # noqa: PLC0415  # large, and needed only here
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415
    except ModuleNotFoundError as error:
        detail = f"Half precision on CUDA needs the library {error.name}."
        raise NotReady(detail, hint="Install the extra `gpu`, or set FOVEA_VISION_PRECISION=fp32.") from error
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f".{made.name}.{os.getpid()}"
    try:
        half = convert_float_to_float16(onnx.load(graph), keep_io_types=True, op_block_list=list(_KEPT))
        onnx.save(half, draft)
        draft.replace(made)
    except (ValueError, RuntimeError) as error:
        detail = f"The graph {graph.name} can't be converted to float16: {type(error).__name__}."
        raise NotReady(detail, hint="Set FOVEA_VISION_PRECISION=fp32.") from error
    finally:
        draft.unlink(missing_ok=True)
    return made
