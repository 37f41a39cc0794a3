"""Tensors out of checkpoints that pickle a whole model object, without importing or running anything of that object.

An unpickler whose every class is a stub that remembers its state and does nothing; the only real things it makes are
tensors, ordered dicts and sets. From the stubs, parameters and buffers are collected under the names that
`state_dict()` would give them. Knows the layout of torch's zip files; knows no model.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea.errors import Malformed

_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

_DEEPEST = 64
"""Modules inside modules; real networks have a dozen."""


class CheckpointTensors(dict[str, Tensor]):
    """The tensors of a checkpoint by key, and the class names by id that the model object carried."""

    names: tuple[str, ...] = ()


class _Stub:
    """Stands for any object of the file: takes whatever it is given, and does nothing with it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[str, Any] = {}

    def __call__(self, *_: Any, **__: Any) -> _Stub:
        return _Stub()

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """Content of a pickled subclass of dict."""

    def append(self, value: Any) -> None:
        """Content of a pickled subclass of list."""

    def extend(self, values: Any) -> None:
        """As `append`."""


class _Reader(pickle.Unpickler):
    """Unpickles stubs; storages come from their own entries of the archive."""

    def __init__(self, archive: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(archive.open(pickled))
        self._archive = archive
        self._folder = pickled.rpartition("/")[0]
        self._made: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A tensor's builder, a kind of storage, a plain container, or a new class of stubs."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return _REAL.get((module, name)) or type("Stub", (_Stub,), {})

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that a tensor looks into, as a flat tensor."""
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage of unknown kind")
        if key not in self._made:
            raw = self._archive.read(f"{self._folder}/data/{key}")
            found = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            if found.numel() < int(numel):
                raise pickle.UnpicklingError("a storage is shorter than it says")
            self._made[key] = found
        return self._made[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A view into a storage; what reaches outside of it is refused."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    inside = offset >= 0 and min((*size, *stride), default=0) >= 0 and last < max(storage.numel(), 1)
    if not inside or math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor reaches outside of its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_REAL: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter, ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set, ("__builtin__", "set"): set,
}  # fmt: skip
"""All that the file can have made next to stubs."""


def read_unpickled(file: Path) -> CheckpointTensors:
    """The tensors of a model object in a torch file, as float32; averaged weights (`ema`) win where both are there.

    Raises:
        Malformed: It is not a torch file, or holds no model.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            whole = _Reader(archive, pickled).load()
    except Exception as error:  # a broken file can make an unpickler raise anything
        detail = f"{file.name!r} is broken, or holds more than tensors, which would run code to load."
        hint = "Where you trust it, convert it: safetensors.torch.save_file(model.state_dict(), NAME)."
        raise Malformed(detail, hint=hint) from error
    model = _model(whole)
    if model is None:
        detail = f"{file.name!r} holds no model that is found without what would run code."
        raise Malformed(detail, hint="Save `model.state_dict()` as safetensors.")
    held = CheckpointTensors(
        (key, tensor.float() if tensor.is_floating_point() else tensor) for key, tensor in _tensors(model)
    )
    held.names = _names(model)
    return held


def _model(whole: Any) -> _Stub | None:
    """The module among what was saved: the object itself, or an entry of a dict."""
    places = [whole, *(whole.get(name) for name in ("ema", "model"))] if isinstance(whole, dict) else [whole]
    return next((each for each in places if isinstance(each, _Stub) and "_modules" in each.state), None)


def _tensors(module: _Stub, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Parameters and kept buffers, in the order of `state_dict()`."""
    if depth > _DEEPEST:
        raise Malformed("The model in the file is nested too deeply.")
    state = module.state
    dropped = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if isinstance(tensor, Tensor) and not (kind == "_buffers" and name in dropped):
                yield f"{prefix}{name}", tensor
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Stub):
            yield from _tensors(child, f"{prefix}{name}.", depth + 1)


def _names(module: _Stub) -> tuple[str, ...]:
    """Class names, from a list or a dict by id."""
    told = module.state.get("names")
    if isinstance(told, dict) and sorted(map(str, told)) == sorted(map(str, range(len(told)))):
        told = [told[key] for key in sorted(told, key=int)]
    return tuple(str(name) for name in told) if isinstance(told, list | tuple) else ()
