"""PyTorch engine: a network in eval mode, arrays in and out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from fovea.api.tensors import Datatype, TensorSpec
from fovea.errors import FoveaError, NotReady
from shared.engines.validation import to_error

TORCH_DATATYPES: Mapping[torch.dtype, Datatype] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.bfloat16: "BF16",
}
"""Torch's dtypes → Open Inference's names; torch has nothing for BYTES."""


class TorchEngine:
    """Runs a network; any number of threads may call `run` at once.

    Args:
        network: Takes the inputs in order, and returns one tensor or a sequence of them; moved to `device`, eval mode.
        inputs: Its inputs.
        outputs: Its outputs, in order.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Intra-op threads of the whole process (torch has one pool); 0 leaves them as they are.
        call: Function to call instead of the network itself, for example one of its methods.

    Raises:
        NotReady: Torch can't use the device.
    """

    name = "torch"
    reason = ""

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        device: str = "cpu",
        threads: int = 0,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        if threads:
            torch.set_num_threads(threads)
        try:
            self._device = torch.device(device)
            self._network = network.eval().to(self._device)
        except (RuntimeError, AssertionError) as error:
            raise NotReady(f"Torch can't use the device {device!r}.", hint="See `fovea doctor`.") from error
        self._call = call or self._network

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs.

        Raises InvalidOption: the network can't take a tensor; TooLarge: there is not enough memory.
        """
        try:
            with torch.inference_mode():
                results = self._call(*(_tensor(feeds[spec.name]).to(self._device) for spec in self.inputs))
                tensors = (results,) if isinstance(results, Tensor) else tuple(results)
                return {spec.name: _array(t) for spec, t in zip(self.outputs, tensors, strict=True)}
        except FoveaError:
            raise
        except (RuntimeError, MemoryError) as error:
            raise to_error(error, feeds) from error

    def close(self) -> None:
        """Free the network; calls that still run finish first."""
        del self._network, self._call


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory where that may be written to, over a copy otherwise."""
    array = np.ascontiguousarray(array)
    array = array if array.flags.writeable else array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return tensor.numpy()
