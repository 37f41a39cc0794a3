"""ONNX Runtime engine, on the CPU or an NVIDIA GPU."""

import contextlib
import ctypes
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnxruntime

from fovea.api.tensors import Datatype, TensorSpec
from fovea.errors import Malformed, NotReady
from shared.engines.gpu_providers import Provider, cuda_provider
from shared.engines.idle_memory import IDLE_SHRINKER
from shared.engines.validation import to_error

ONNX_DATATYPES: Mapping[str, Datatype] = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16", "tensor(string)": "BYTES",
}  # fmt: skip
"""ONNX Runtime's names of types → Open Inference's."""

_BFLOAT16 = 16
"""Number of bfloat16 in ONNX's own list of types; ONNX Runtime asks for it by number."""

_QUIET = 4
"""Log nothing but what ends the process: failed runs are answered, not printed."""


class OnnxEngine:
    """Runs a graph; any number of threads may call `run` at once.

    Args:
        graph: The ONNX file, or its bytes.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Intra-op threads; 0 means one per core.
        providers: Execution providers in order of preference, instead of those that `device` stands for.

    Raises:
        NotReady: The device is not one that this build of ONNX Runtime runs on, or the graph can't be loaded.
    """

    name = "onnx"
    reason = ""

    def __init__(
        self, graph: Path | bytes, *, device: str = "cpu", threads: int = 0, providers: Sequence[Provider] | None = None
    ) -> None:
        wanted = list(providers) if providers is not None else _providers(device)
        source = graph if isinstance(graph, bytes) else str(graph)
        try:
            self._session = onnxruntime.InferenceSession(source, session_options(threads), providers=wanted)
        except Exception as error:
            raise NotReady(f"ONNX Runtime can't load the graph: {type(error).__name__}.") from error
        # ONNX Runtime falls back to the CPU silently when a provider's libraries are missing.
        if wanted[0][0] not in self._session.get_providers():
            raise NotReady(f"{wanted[0][0]} did not start.", hint="Check the driver and CUDA libraries: fovea doctor.")
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))
        self.provider = wanted[0][0]
        self._gpu = None if self.provider == "CPUExecutionProvider" else int(wanted[0][1]["device_id"])
        self._plain = all(spec.datatype != "BF16" for spec in (*self.inputs, *self.outputs))
        self._buffers = threading.local()
        self._smallest: Mapping[str, np.ndarray] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs.

        Raises InvalidOption: the graph can't take a tensor; TooLarge: there is not enough memory.
        """
        ready = {spec.name: _ready(spec, feeds[spec.name]) for spec in self.inputs}
        names = [spec.name for spec in self.outputs]
        try:
            results = self._run(names, ready)
        except Exception as error:
            raise to_error(error, feeds) from error
        if self._gpu is None:
            self._note_run(ready)
        return {
            spec.name: _bytes(array) if spec.datatype == "BYTES" else array
            for spec, array in zip(self.outputs, results, strict=True)
        }

    def close(self) -> None:
        """Free the graph; calls that still run finish first."""
        del self._session

    def shrink(self) -> None:
        """Run zeros of the smallest sizes that were seen, and have ONNX Runtime give back what larger ones needed."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with contextlib.suppress(Exception):  # closed meanwhile, or zeros are no input of this graph
            self._session.run(None, {name: np.array(array) for name, array in self._smallest.items()}, options)

    def _note_run(self, feeds: Mapping[str, np.ndarray]) -> None:
        if not self._plain or any(array.dtype == object for array in feeds.values()):
            return
        size, least = (sum(array.size for array in some.values()) for some in (feeds, self._smallest))
        if not self._smallest or size < least:
            # Zeros without memory of their own: one number, seen at every place.
            self._smallest = {name: np.broadcast_to(array.dtype.type(0), array.shape) for name, array in feeds.items()}
        IDLE_SHRINKER.note_run(self)

    def _run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not self._plain:
            return self._run_values(names, feeds)
        if self._gpu is None or any(spec.datatype == "BYTES" for spec in (*self.inputs, *self.outputs)):
            return cast("list[np.ndarray]", self._session.run(names, feeds))
        return self._run_on_gpu(self._gpu, names, feeds)

    def _run_on_gpu(self, index: int, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run on tensors that lie on the GPU: one copy in, into memory that each thread keeps, and one copy out."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._on_gpu(index, name, array))
        for name in names:
            binding.bind_output(name, "cuda", index)
        self._session.run_with_iobinding(binding)
        return cast("list[np.ndarray]", binding.copy_outputs_to_cpu())

    def _on_gpu(self, index: int, name: str, array: np.ndarray) -> Any:
        held = self._buffers.__dict__
        value = held.get(name)
        if value is None or tuple(value.shape()) != array.shape:
            held[name] = value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", index)
        else:
            value.update_inplace(array)
        return value

    def _run_values(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run with ONNX Runtime's own values: it has no numpy form of bfloat16."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, _value(array))
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return [_array(value) for value in binding.get_outputs()]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options under which one model leaves the cores alone while it waits: threads that spin would burn them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _providers(device: str) -> list[Provider]:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return [("CPUExecutionProvider", {})]
    if kind != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotReady(f"This build of ONNX Runtime has no {device}.", hint="Install the extra `gpu` instead of `cpu`.")
    onnxruntime.preload_dlls(directory="")  # CUDA and cuDNN from their wheels, where nobody has imported torch
    return [cuda_provider(int(index or 0)), ("CPUExecutionProvider", {})]


def _spec(node: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in node.shape)
    return TensorSpec(name=node.name, datatype=ONNX_DATATYPES[node.type], shape=shape)


def _ready(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """The array as ONNX Runtime wants it: in one piece, and BYTES as text, for its strings are UTF-8."""
    if spec.datatype != "BYTES":
        return np.ascontiguousarray(array)
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise Malformed(f"The input {spec.name!r} holds bytes that are not UTF-8.", field=spec.name) from error
    return np.array(texts, dtype=object).reshape(array.shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.array([str(item).encode() for item in array.ravel().tolist()], dtype=object).reshape(array.shape)


def _value(array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return cast("np.ndarray", value.numpy())
    shape = tuple(value.shape())
    words = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.asarray(np.array(words, dtype=np.uint16).view(ml_dtypes.bfloat16)).reshape(shape)
