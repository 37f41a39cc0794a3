"""A stand-in for CUDA graphs: what a function launches is recorded with its tensors, and done again in each replay.

It keeps the promises of a graph: Python does not run again, addresses and host numbers are those of the recording, and
nothing is computed until a replay. Knows operations of torch and launches of Triton's interpreter.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.device.pretend_cuda import PretendCuda


class StandInGraph:
    """Records; see `GraphRecorder`. Counts its recordings and replays."""

    def __init__(self) -> None:
        self.records = self.replays = 0
        self.launches: list[Callable[[], None]] | None = None  # of the recording that is being made, to be called again

    def record(self, run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        todo: list[Callable[[], None]] = []
        self.launches = todo
        try:
            with _Recording(todo):
                outputs = run()
        finally:
            self.launches = None
        self.records += 1
        with _disable_current_modes():
            for x in outputs:
                x.fill_(-1e30)  # a recording computes nothing

        def replay() -> None:
            self.replays += 1
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                for one in todo:
                    one()

        return replay, outputs


class PlainRecorder:
    """A recorder whose replays run the function again; with a device, no recording may wait or copy."""

    def __init__(self, *, fails: bool = False, device: PretendCuda | None = None) -> None:
        self.records, self._fails, self._device = 0, fails, device

    def record(self, run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        self.records += 1
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        before = self._held_up()
        outputs = run()
        assert self._held_up() == before, "a recording waits or copies"

        def replay() -> None:
            for old, new in zip(outputs, run(), strict=True):
                old.copy_(new)

        return replay, outputs

    def _held_up(self) -> dict[str, int]:
        """Waits and copies by place, without those of the kernels that stand in for Triton's: they read the runs."""
        seen = {} if self._device is None else {**self._device.waits, **self._device.copies}
        return {place: n for place, n in seen.items() if "kernels/decode/__init__" not in place}


class _Recording(TorchDispatchMode):
    def __init__(self, todo: list[Callable[[], None]]) -> None:
        super().__init__()
        self._todo = todo

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if func._schema.is_mutable:
            self._todo.append(lambda: func(*args, **kwargs))
        elif any(_storage(x) not in given for x in made):  # else they are views

            def again() -> None:
                for old, new in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                    old.copy_(new)

            self._todo.append(again)
        return result


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
