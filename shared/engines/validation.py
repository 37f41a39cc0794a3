"""Validation of feeds, and translation of failed runs, for all engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.api.tensors import TensorSpec
from shared.errors import Fault, FoveaError, InvalidOption, TooLarge
from shared.rpc.tensors import datatype_of

_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "not enough memory", "can't allocate memory")

_DEVICE = ("cuda error", "cuda failure", "cudnn", "cublas")


def check_feeds(feeds: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> None:
    """Check that `feeds` holds exactly the inputs of `specs`.

    Raises:
        InvalidOption: A tensor is missing or unknown, or has another dtype or shape; `field` names it.
    """
    names = [spec.name for spec in specs]
    if unknown := [name for name in feeds if name not in names]:
        raise InvalidOption(f"There is no input {unknown[0]!r}; inputs are {', '.join(names)}.", field=unknown[0])
    for spec in specs:
        if spec.name not in feeds:
            raise InvalidOption(f"The input {spec.name!r} is missing.", field=spec.name)
        array = feeds[spec.name]
        if datatype_of(spec.name, array) != spec.datatype or not _fits(array.shape, spec.shape):
            expected = f"{spec.datatype} {list(spec.shape)}"
            raise InvalidOption(
                f"The input {spec.name!r} is {describe_spec(spec.name, array)}, but {expected} is needed.",
                hint="-1 stands for any length.",
                field=spec.name,
            )


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(b in {-1, a} for a, b in zip(shape, expected, strict=True))


def describe_spec(name: str, array: np.ndarray) -> str:
    """Datatype and shape in words, for example `FP32 [1, 3, 352, 352]`."""
    return f"{datatype_of(name, array)} {list(array.shape)}"


def to_error(error: Exception, feeds: Mapping[str, np.ndarray]) -> FoveaError:
    """Translate an exception of a numerical library for the caller.

    A network that ran its example fails on other arrays only for their shape or size, or because its device is broken.
    The library's own text stays in the log: it may name files.
    """
    text, tensors = (
        str(error).lower(),
        ", ".join(f"{name} {describe_spec(name, array)}" for name, array in feeds.items()),
    )
    if any(word in text for word in _MEMORY):
        return TooLarge(f"There is not enough memory to run {tensors}.", hint="Send fewer or smaller tensors.")
    if any(word in text for word in _DEVICE):
        return Fault("The device of the model failed.")
    return InvalidOption(
        f"The network can't run {tensors}.", hint="Check the sizes that its Card states.", field=next(iter(feeds), None)
    )
