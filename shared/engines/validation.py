"""Translation of failed runs, for all engines. Callers' input is checked before, by `shared.serving.oip.tensors`."""

from collections.abc import Mapping

import numpy as np

from fovea.errors import Fault, FoveaError, InvalidOption, TooLarge
from shared.rpc.tensors import datatype_of
from shared.telemetry import log

_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "not enough memory", "can't allocate memory")

_DEVICE = ("cuda error", "cuda failure", "cudnn", "cublas")


def describe_spec(name: str, array: np.ndarray) -> str:
    """Datatype and shape in words, for example `FP32 [1, 3, 352, 352]`."""
    return f"{datatype_of(name, array)} {list(array.shape)}"


def to_error(error: Exception, feeds: Mapping[str, np.ndarray]) -> FoveaError:
    """Translate an exception of a numerical library for the caller.

    A network that ran its example fails on other arrays only for their shape or size, or because its device is broken.
    The library's own text stays in the log: it may name files.
    """
    text, tensors = str(error).lower(), ", ".join(f"{name} {describe_spec(name, a)}" for name, a in feeds.items())
    if any(word in text for word in _MEMORY):
        return TooLarge(f"There is not enough memory to run {tensors}.", hint="Send fewer or smaller tensors.")
    if any(word in text for word in _DEVICE):
        log().error("the device of a model failed", exc_info=error)
        return Fault("The device of the model failed.")
    return InvalidOption(
        f"The network can't run {tensors}.", hint="Check the sizes that its Card states.", field=next(iter(feeds), None)
    )
