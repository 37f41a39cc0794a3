"""Errors of torch, Triton and ONNX Runtime in the log after which CUDA answers nothing more to this process."""

import re
from typing import Any

_FATAL = re.compile(
    r"(?:CUDA error|Triton Error \[CUDA\]|CUDA failure \d+): [^\n;]*"
    r"(?:illegal|misaligned|assert triggered|launch failure|launch timed out|uncorrectable|hardware|address space)"
)
LOSSES: list[str] = []
"""Losses that this process met; its watchdog looks here."""


def note_device_loss(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """Remember the exception of a line of the log if it is one of them; other errors may quote the words of a user."""
    error = event.get("exc_info")
    is_of_a_device = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")
    if is_of_a_device and (found := _FATAL.search(str(error))):
        LOSSES.append(found[0])
    return event
