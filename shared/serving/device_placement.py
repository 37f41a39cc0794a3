"""Device placement: turns settings into a LoadContext, and lists the GPUs.

Loads no deep-learning library unless the NVIDIA driver is there.
"""

import ctypes
import gc
import importlib.util
import sys
from pathlib import Path

from fovea.errors import NotReady
from shared.registry import LoadContext
from shared.serving.metrics_server import find_cuda
from shared.settings import Settings
from shared.storage import open_object_store

_OPTIONS = (
    *("llm_model", "llm_dtype", "llm_tensor_parallel", "llm_weights", "llm_kv_cache_dtype", "llm_request_templates"),
    *("llm_fidelity_sample_rate", "llm_fidelity_min_agreement", "llm_adapters", "vision_precision", "max_body_bytes"),
    *("max_pixels", "max_side", "picture_memory_bytes", "judge_base_url"),
    *("triton_url", "triton_timeout_s", "triton_connections"),
)
"""Settings that models read as text."""


def load_context(settings: Settings) -> LoadContext:
    """The LoadContext with which this process loads its Servables."""
    options = {name: str(value) for name in _OPTIONS if (value := getattr(settings, name)) is not None}
    if settings.judge_api_key:
        options["judge_api_key"] = settings.judge_api_key.get_secret_value()
    installed = Path(sys.prefix) / "graphs"  # those that were exported into this environment when it was installed
    return LoadContext(
        device=choose_device(settings.device), engine=settings.engine, cache=settings.cache_dir,
        weights=settings.weights_dir, graphs=settings.graphs_dir or (installed if installed.is_dir() else None),
        threads=settings.intra_op_threads, objects=open_object_store(settings), options=options,
    )  # fmt: skip


def choose_device(device: str) -> str:
    """`device` itself, or for `auto` the first GPU that a library here can use, else the CPU.

    Raises NotReady: it is a CUDA device, and there is none.
    """
    if device == "auto":
        return "cuda" if list_gpus() and _library_sees_gpu() else "cpu"
    if device.partition(":")[0] == "cuda":
        _require_gpu(device)
    return device


def _require_gpu(device: str) -> None:
    found, index = list_gpus(), device.partition(":")[2] or "0"
    if not found:
        detail = f"There is no CUDA device: FOVEA_DEVICE is {device}, and the NVIDIA driver shows no GPU here."
        hint = "Give the container a GPU (`--gpus all`, or `gpus` in the chart), or set FOVEA_DEVICE to cpu or auto."
        raise NotReady(detail, hint=hint)
    if not index.isdecimal() or int(index) >= len(found):
        detail = f"There is no CUDA device {index}: FOVEA_DEVICE is {device}, and this machine has {len(found)}."
        raise NotReady(detail, hint=f"Available: {', '.join(f'cuda:{i}' for i in range(len(found)))}.")
    if not _library_sees_gpu():
        detail = f"No library here can use {device}: torch or ONNX Runtime is built for CPUs, or the driver is too old."
        hint = "Install the extra `gpu` instead of `cpu`, and a driver for CUDA 13 (580 or newer)."
        raise NotReady(detail, hint=hint)


def list_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    name, found = ctypes.create_string_buffer(96), []
    for index in range(count.value):
        driver.cuDeviceGetName(name, len(name), index)
        found.append(name.value.decode("utf-8", "replace") or f"GPU {index}")
    return found


def free_gpu_memory() -> None:
    """Give back what closed models held: engines hold themselves in circles, and torch keeps what a GPU gave it."""
    if (cuda := find_cuda()) is not None:
        gc.collect()
        cuda.empty_cache()


def _library_sees_gpu() -> bool:
    if importlib.util.find_spec("torch") is not None:
        return bool(importlib.import_module("torch").cuda.is_available())
    if importlib.util.find_spec("onnxruntime") is not None:
        return "CUDAExecutionProvider" in importlib.import_module("onnxruntime").get_available_providers()
    return False
