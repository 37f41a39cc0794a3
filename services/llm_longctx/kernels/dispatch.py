"""Kernel dispatch: the fastest back end that can run an operation, chosen once per kind of call, and counted.

A back end that is not there or can't take a call is passed over with a reason, which the counter carries. Asked for by
name, it runs or says why it can't. Knows nothing about what the operations compute.
"""

import importlib.util
from functools import cache
from typing import Literal

import torch

from fovea.errors import BadInput, NotReady
from services.llm_longctx.kernels.native import bindings
from shared import telemetry

Op = Literal[
    "block_sparse_prefill", "decode", "decode_step", "last_query_scores", "layer", "merge", "sample", "window_prefill"
]
Backend = Literal["reference", "cpu_torch", "cpu_ext", "triton"]

BACKENDS: tuple[Backend, ...] = ("reference", "cpu_torch", "cpu_ext", "triton")
"""From the plainest to the fastest."""

_HINTS = {
    "cpu_ext": "`fovea build-kernels` builds it where a C++ compiler is installed.",
    "triton": "It runs on a GPU of compute capability 8.0 or higher; set TRITON_INTERPRET=1 to try it slowly on a CPU.",
}

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def backends() -> list[str]:
    """Names of the back ends that this machine has."""
    return [name for name in BACKENDS if not _absent(name)]


def choose(op: Op, backend: str, dtype: torch.dtype, device: str) -> Backend:
    """The back end for a call; every choice is counted.

    Args:
        op: The operation.
        backend: `auto` or a name.
        dtype: Of queries, keys and values.
        device: Their device's type.

    Raises:
        BadInput: No back end has this name.
        NotReady: The named one is not built, or can't take this dtype or device.
    """
    chosen, reason = _chosen(backend, dtype, device)
    telemetry.kernel_called(op, chosen, reason)
    return chosen


@cache
def _chosen(backend: str, dtype: torch.dtype, device: str) -> tuple[Backend, str]:
    if backend != "auto":
        return _named(backend, dtype, device), "asked for"
    passed = ""
    for name in reversed(BACKENDS):
        reason = _unfit(name, dtype, device) or _absent(name)
        if not reason:
            return name, passed
        # The reason that counts is that of the back end made for this device.
        passed = passed or ("" if name == "triton" and device == "cpu" else f"{name}: {reason}")
    return "reference", passed


def _named(backend: str, dtype: torch.dtype, device: str) -> Backend:
    for name in BACKENDS:
        if name == backend:
            if reason := _absent(name) or _unfit(name, dtype, device, asked=True):
                raise NotReady(f"The kernel back end {name} can't be used: {reason}.", hint=_HINTS.get(name))
            return name
    raise BadInput(f"There is no kernel back end {backend!r}; known are auto, {', '.join(BACKENDS)}.", field="backend")


@cache
def _absent(name: Backend) -> str:
    """Why this machine lacks a back end; empty where it has it."""
    if name == "cpu_ext":
        return bindings.explain_absence()
    return _without_triton() if name == "triton" else ""


def _without_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "it is not installed"
    if is_interpreted():
        return ""
    if not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET is not set"
    major, minor = torch.cuda.get_device_capability()
    return "" if major >= 8 else f"the GPU has compute capability {major}.{minor}, and the kernels need 8.0"


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on a CPU: good for tests, never for serving."""
    from triton import knobs  # noqa: PLC0415  # slow to import, and not everybody has it

    return bool(knobs.runtime.interpret)


def _unfit(name: Backend, dtype: torch.dtype, device: str, *, asked: bool = False) -> str:
    """Why a back end can't take a call; empty where it can."""
    if name == "cpu_ext":
        return "" if device == "cpu" and dtype in _NATIVE_DTYPES else f"no {dtype} on {device}"
    if name == "triton":
        # On a CPU only the interpreter runs it, and only for who asks.
        runs = device == "cuda" or (asked and device == "cpu" and is_interpreted())
        return "" if runs and dtype != torch.float64 else f"no {dtype} on {device}"
    return ""
