"""Transfers between host and device: the only places where a decode step sends numbers or waits for the device.

Tensors are sent through pinned memory, so that the host goes on at once; reading one makes it wait. Everything else
must find its tensors on the device: `tests/device` counts what passes here. Knows tensors only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(
    values: np.ndarray | Sequence[int] | Sequence[float] | Tensor,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Send numbers to a device without waiting for it. On a CPU an array or a tensor is used as it lies."""
    if isinstance(values, np.ndarray):
        found = torch.from_numpy(values if values.flags.writeable else values.copy())
    elif isinstance(values, Tensor):
        found = values
    else:
        found = torch.tensor(values, dtype=dtype, device="cpu")
    found = found if dtype is None else found.to(dtype)
    if torch.device(device).type == found.device.type:
        return found
    return found.pin_memory().to(device, non_blocking=True)


def to_host(x: Tensor) -> Tensor:
    """Wait for a tensor's values and bring them to the CPU."""
    return x.cpu()


def overwrite(held: Tensor, words: np.ndarray) -> None:
    """Write numbers to a tensor of their type and size, in one copy."""
    sent = torch.from_numpy(words)
    held.copy_(sent if held.device.type == "cpu" else sent.pin_memory(), non_blocking=True)


class DeviceBuffer:
    """Memory on a device that is written anew in each step and stays at one address while it is large enough."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._held: Tensor | None = None

    def send(self, words: np.ndarray) -> Tensor:
        """Write int64 numbers [n] to the front of the buffer, in one copy; return them there."""
        if self._device.type == "cpu":
            return torch.from_numpy(words)
        if self._held is None or len(self._held) < len(words):
            self._held = torch.empty(2 * len(words), dtype=torch.int64, device=self._device)
        found = self._held[: len(words)]
        overwrite(found, words)
        return found


def take_rows(x: Tensor, rows: Sequence[int], dim: int = 0) -> Tensor:
    """Rows of x by Python numbers, without sending these to its device; a view where they follow each other.

    Raises IndexError for a row that x does not have.
    """
    if rows and not 0 <= min(rows) <= max(rows) < x.shape[dim]:
        raise IndexError(f"rows {min(rows)} to {max(rows)} of a tensor that has {x.shape[dim]}")
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    if not runs:
        return x.narrow(dim, 0, 0)
    parts = [x.narrow(dim, begin, end - begin) for begin, end in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
