"""Errors after which CUDA answers nothing more to a process, until that is started again."""

import re

_FATAL = re.compile(
    r"cuda.*(illegal|misaligned|assert triggered|launch failure|launch timed out|uncorrectable|hardware|address space)",
    re.IGNORECASE,
)
"""In the words of CUDA, whether torch, Triton's language or ONNX Runtime passes them on."""

LOSSES: list[str] = []
"""What this process met of them; its watchdog looks here."""


def note_device_loss(error: BaseException) -> None:
    """Remember an error if it is one of them."""
    if found := _FATAL.search(str(error)):
        LOSSES.append(found[0])
