"""Tensor batches: checks feeds against an engine's specs, joins and splits them along the batch axis."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from shared.registry import Engine
from shared.rpc.tensors import datatype_of

Feeds = Mapping[str, np.ndarray]
"""Tensors by name; axis 0 is the batch."""


def is_batchable(engine: Engine) -> bool:
    """Whether requests may share a run: every tensor's first axis is of any length."""
    return all(spec.shape[:1] == (-1,) for spec in (*engine.inputs, *engine.outputs))


def check_feeds(feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
    """Check that `feeds` are exactly the stated inputs.

    Raises InvalidOption: a tensor is missing, unknown, of another dtype or shape, or the batch sizes differ; `field`
    names the tensor.
    """
    stated = {spec.name: spec for spec in specs}
    for name in feeds.keys() - stated.keys():
        raise InvalidOption(f"There is no input {name!r}; inputs are {', '.join(stated)}.", field=name)
    for name, spec in stated.items():
        if name not in feeds:
            raise InvalidOption(
                f"The input {name!r} is missing.", field=name, hint=f"It is {spec.datatype} {list(spec.shape)}."
            )
        _check_one(feeds[name], spec)
    if len({array.shape[0] for array in feeds.values() if array.ndim}) > 1:
        sizes = ", ".join(f"{name} {array.shape[0]}" for name, array in feeds.items() if array.ndim)
        raise InvalidOption(f"All inputs must have the same batch size (axis 0); sent were {sizes}.", field="shape")


def _check_one(array: np.ndarray, spec: TensorSpec) -> None:
    if (datatype := datatype_of(spec.name, array)) != spec.datatype:
        raise InvalidOption(f"The input {spec.name!r} is {datatype}, but {spec.datatype} is needed.", field=spec.name)
    fits = array.ndim == len(spec.shape) and all(
        length == expected if expected >= 0 else length > 0
        for length, expected in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        detail = f"The input {spec.name!r} has shape {list(array.shape)}, but {list(spec.shape)} is needed."
        raise InvalidOption(detail, hint="-1 stands for any length above 0.", field=spec.name)


def signature(feeds: Feeds) -> Hashable:
    """The part that must be equal for requests to share a run: names, dtypes and all axes but the first."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items()))


def count_rows(feeds: Feeds) -> int:
    """Count the rows: the length of the batch axis."""
    return max((array.shape[0] for array in feeds.values() if array.ndim), default=1)


def join_rows(requests: Sequence[Feeds]) -> dict[str, np.ndarray]:
    """One set of tensors from several of the same signature, joined on axis 0."""
    return {name: np.concatenate([feeds[name] for feeds in requests]) for name in requests[0]}


def split_rows(outputs: Feeds, sizes: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Undo `join_rows` on the outputs: `sizes[i]` rows for request i. Views, not copies.

    Raises ValueError: an output has not one row per input row, so it can't be told whose is whose.
    """
    total = sum(sizes)
    for name, array in outputs.items():
        if array.shape[:1] != (total,):
            raise ValueError(f"output {name!r} has shape {array.shape} for {total} rows")
    ends = np.cumsum(sizes).tolist()
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]
