"""A CUDA device that is only pretended: tensors keep their values in the CPU's memory, and each has a device on record.

Two layers of torch's own overrides see every call. The upper one answers what Python asks (`x.device`, `.to("cuda")`,
`.tolist()`, factories with `device=`). The lower one sees each operation with its operands, as a device would: it
raises where devices mix as CUDA does, and it records what makes the host wait (`.item()`, shapes that depend on data)
or copies behind the caller's back. Knows nothing about models. ADR 28 says why it is not FakeTensorMode.
"""

from __future__ import annotations

import contextlib
import os.path
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from shared.lm import host_transfer

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")

_ROOT = Path(__file__).parents[2]
_SEAM = host_transfer.__file__

_ON_CUDA: dict[int, StorageWeakRef] = {}
"""Memory that is said to be a device's. The weak references keep the addresses from being used again."""

_aten = torch.ops.aten

_WAITS = {
    _aten._local_scalar_dense.default: "reads a value (.item(), bool, int or float of a tensor)",
    _aten.equal.default: "compares tensors on the host (torch.equal)",
    _aten.nonzero.default: "has as many results as the data says (nonzero, boolean masks)",
    _aten.masked_select.default: "has as many results as the data says (masked_select)",
    _aten._unique2.default: "has as many results as the data says (unique)",
    _aten.unique_dim.default: "has as many results as the data says (unique)",
    _aten.unique_consecutive.default: "has as many results as the data says (unique_consecutive)",
    _aten.bincount.default: "has as many results as the data says (bincount)",
}
"""Operations after which the host must wait for the device, each with its reason."""

_READS = {Tensor.tolist: "tolist()", Tensor.numpy: "numpy()", Tensor.__array__: "numpy.asarray()", Tensor.data_ptr: ""}
"""Methods that read memory without an operation; CUDA's `numpy` fails."""

_VALUES = {Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__}
"""Methods that read one value."""

_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_FILLS = {_aten.copy_.default, _aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor}


class DeviceFault(RuntimeError):
    """Calls that a real device would refuse, or that a decode step must not make."""


class PretendCuda:
    """The pretended device."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()  # of the host for the device, by reason and place
        self.copies: Counter[str] = Counter()  # hidden ones between host and device, by place
        self.transfers: Counter[str] = Counter()  # meant ones, through `shared.lm.host_transfer`: `sent` and `read`
        self.strict = False  # whether waits and hidden copies are faults
        self.inherits = False  # whether torch is inside a call whose tensors lie on the device

    @contextlib.contextmanager
    def active(self) -> Iterator[PretendCuda]:
        with _Calls(self), _Operations(self):
            yield self

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        before, self.strict = self.strict, True
        try:
            yield
        finally:
            self.strict = before

    @contextlib.contextmanager
    def inheriting(self, args: Any) -> Iterator[None]:
        """Tensors that torch makes inside a call lie where the call's tensors lie, as `one_hot` and gradients do."""
        tensors = (x for one in args for x in (one if isinstance(one, list | tuple) else (one,)))
        before = self.inherits
        self.inherits = before or any(isinstance(x, Tensor) and self.device_of(x).type == "cuda" for x in tensors)
        try:
            yield
        finally:
            self.inherits = before

    def device_of(self, x: Tensor) -> torch.device:
        if x.device.type != "cpu" or x.layout is not torch.strided:
            return x.device
        held = _ON_CUDA.get(x.untyped_storage()._cdata)
        return CUDA if held is not None and not held.expired() else _CPU

    def put(self, x: Tensor) -> Tensor:
        """Say that a tensor's memory is the device's; everything that shares it goes along."""
        storage = x.untyped_storage()
        _ON_CUDA[storage._cdata] = StorageWeakRef(storage)
        return x

    def wait(self, why: str) -> None:
        self._note(self.waits, why, "read", f"the host waits for the device in a decode step: an operation {why}")

    def copy(self, what: str) -> None:
        """Data goes between host and device."""
        self._note(self.copies, what, "sent", f"data goes between host and device in a decode step: {what}")

    def _note(self, counter: Counter[str], what: str, meant: str, fault: str) -> None:
        if _is_meant():
            self.transfers[meant] += 1
            return
        counter[f"{what} at {_place()}"] += 1
        if self.strict:
            raise DeviceFault(f"{fault}, at {_place()}")


def to_cuda(module: nn.Module, device: PretendCuda) -> nn.Module:
    """Put a module's parameters and buffers on the device, copied: the original stays where it is."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
        device.put(tensor)
    return module


class _Operations(TorchDispatchMode):
    def __init__(self, device: PretendCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self._device
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if "cuda" not in (places := [device.device_of(x).type for x in tensors]):
            made = func(*args, **kwargs)
            return device.put(made) if not places and device.inherits and isinstance(made, Tensor) else made
        if "cpu" in places and func not in {_aten._to_copy.default, _aten._copy_from.default}:  # those: see `_Calls`
            self._check_mixed(func, args, tensors, places)
        if (why := _WAITS.get(func)) is not None:
            device.wait(why)
        if func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            device.wait("has as many results as the data says (repeat_interleave)")
        if func in _INDEXED and _is_masked(func, args):
            device.wait("indexes by a boolean mask")
        result = func(*args, **kwargs)
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type == "cpu":
                device.put(x)
        return result

    def _check_mixed(self, func: Any, args: Any, tensors: list[Tensor], places: list[str]) -> None:
        """Raise where an operation's operands lie on two devices, as CUDA would."""
        if func is _aten.copy_.default:
            if args[1].dim():  # else x[i] = 0.0: on a device torch fills
                self._device.copy("copies a whole tensor, by assignment or copy_()")
            return
        if func in _INDEXED and any(isinstance(i, Tensor) and self._device.device_of(i).type == "cpu" for i in args[1]):
            raise DeviceFault(f"a tensor on the device is indexed by one on the host, at {_place()}")
        if func is _aten.where.self:  # of a number in the host's memory; one of Python's is made on the device
            self._device.copy("sends a number that torch.where may choose")
        pointwise = torch.Tag.pointwise in func.tags or func in _INDEXED or func in _FILLS
        if [x for x, place in zip(tensors, places, strict=True) if place == "cpu" and (x.dim() or not pointwise)]:
            message = f"{func}: expected all tensors to be on the same device, but operands are on"
            raise DeviceFault(f"{message} {', '.join(places)}, at {_place()}")


class _Calls(TorchFunctionMode):
    """The upper layer: what Python asks of tensors, and factories."""

    def __init__(self, device: PretendCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor):
            x = args[0]
            if name == "__get__" and (answer := self._answer(func, x)) is not None:
                return answer
            if name in {"to", "cuda", "cpu", "type_as"}:
                return self._move(func, name, x, args[1:], kwargs)
            if name == "pin_memory":
                return x  # pinned memory is the host's
            if torch.is_inference_mode_enabled() and self._device.device_of(x).type == "cuda":
                self._see_in_inference_mode(func, name, args, kwargs)
            if func is Tensor.__setitem__ and _sends_a_number(self._device, x, *args[1:]):
                self._device.copy("sends a number for rows by an index")
            if func in _READS and self._device.device_of(x).type == "cuda":
                self._read(func)
            if name == "new_tensor" and "device" not in kwargs:
                kwargs["device"] = self._device.device_of(x)
        return self._make(func, args, kwargs)

    def _see_in_inference_mode(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Torch then reads values, and repeats by them, without an operation that the lower layer would see."""
        if func in _VALUES:
            self._device.wait(_WAITS[_aten._local_scalar_dense.default])
        by = kwargs.get("repeats", args[-1])
        if name == "repeat_interleave" and isinstance(by, Tensor) and "output_size" not in kwargs:
            self._device.wait("has as many results as the data says (repeat_interleave)")

    def _answer(self, func: Any, x: Tensor) -> Any:
        if (owner := getattr(func, "__self__", None)) is Tensor.device:
            return self._device.device_of(x)
        if owner is Tensor.is_cuda:
            return self._device.device_of(x).type == "cuda"
        return None

    def _read(self, func: Any) -> None:
        if func in {Tensor.numpy, Tensor.__array__}:
            raise DeviceFault(f"can't convert cuda:0 device type tensor to numpy, at {_place()}")
        if what := _READS[func]:
            self._device.wait(f"reads all values ({what})")

    def _move(self, func: Any, name: str, x: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        device = self._device
        before = device.device_of(x)
        if name in {"cuda", "cpu"}:
            target, dtype = (CUDA if name == "cuda" else _CPU), None
        elif name == "type_as" or (args and isinstance(args[0], Tensor)):
            target, dtype = device.device_of(args[0]), args[0].dtype
        else:
            parsed, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
            target = before if parsed is None else torch.device(parsed)
        found = x if dtype is None else x.to(dtype)
        if target.type == before.type:
            return found.clone() if kwargs.get("copy") and found is x else found
        if target.type == "cuda":
            device.copy("copies from the host (.to)")
        else:
            device.wait("copies to the host (.cpu() or .to)")
        with _disable_current_modes():
            moved = found.detach().clone()
        return device.put(moved) if target.type == "cuda" else moved

    def _make(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if (asked := kwargs.get("device")) is None or torch.device(asked).type != "cuda":
            with self._device.inheriting(args):
                return func(*args, **kwargs)
        kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        if func in {torch.tensor, torch.as_tensor, Tensor.new_tensor}:
            source = args[1] if func is Tensor.new_tensor else args[0]
            if isinstance(source, Tensor):
                return self._move(Tensor.to, "to", source, (CUDA,), {})
            self._device.copy("makes a tensor of Python numbers (torch.tensor)")
        with _disable_current_modes():
            made = func(*args, **kwargs)
        return self._device.put(made)


def _sends_a_number(device: PretendCuda, x: Tensor, index: Any, value: Any) -> bool:
    """Whether x[index] = value copies a number to the device, where torch would fill a slice or a mask."""
    parts = index if isinstance(index, tuple) else (index,)
    rows = any(isinstance(i, Tensor) and i.dtype is not torch.bool and i.dim() for i in parts)
    return rows and not isinstance(value, Tensor) and device.device_of(x).type == "cuda"


def _is_masked(func: Any, args: Any) -> bool:
    """Whether a boolean mask says how many entries are read, or written from a tensor of as many."""
    masked = any(isinstance(i, Tensor) and i.dtype in {torch.bool, torch.uint8} for i in args[1])
    return masked and (func is _aten.index.Tensor or (isinstance(args[2], Tensor) and args[2].dim() > 0))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place() -> str:
    for frame in _frames():
        name = frame.f_code.co_filename
        if "/torch/" not in name and name != __file__:
            return f"{os.path.relpath(name, _ROOT)}:{frame.f_lineno}"
    return "an unknown place"


def _is_meant() -> bool:
    """Whether the call comes from the one place that may copy between host and device."""
    return any(frame.f_code.co_filename == _SEAM for frame in _frames())
