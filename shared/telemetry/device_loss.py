"""Errors after which CUDA answers nothing more to a process, until that is started again. Found in what is logged."""

import re
from typing import Any

_FATAL = re.compile(
    r"cuda.*(illegal|misaligned|assert triggered|launch failure|launch timed out|uncorrectable|hardware|address space)",
    re.IGNORECASE,
)
"""In the words of CUDA, whether torch, Triton's language or ONNX Runtime passes them on."""

LOSSES: list[str] = []
"""Losses that this process met; its watchdog looks here."""


def note_device_loss(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """Remember the exception of a line of the log if it is one of them."""
    if found := _FATAL.search(str(event.get("exc_info"))):
        LOSSES.append(found[0])
    return event
