"""The pretended device refuses what a real one refuses, and sees every wait and copy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from shared.lm.host_transfer import DeviceBuffer, to_device, to_host
from tests.device.pretend_cuda import CUDA, DeviceFault, PretendCuda


@pytest.fixture
def device():
    with PretendCuda().active() as made:
        yield made


def x() -> torch.Tensor:
    return torch.ones(3, 4, device="cuda")


REFUSED = {
    "an index on the host": lambda: x().index_copy_(0, torch.arange(3), x()),
    "rows by an index on the host": lambda: x()[torch.arange(2)], "rows by a list": lambda: x()[[0, 2]],
    "writing rows by an index on the host": lambda: x().__setitem__(torch.arange(2), 0.0),
    "a sum of both": lambda: x() + torch.ones(3, 4),
    "a mask on the host": lambda: x().masked_fill(torch.zeros(3, 4, dtype=torch.bool), 0),
    "joining both": lambda: torch.cat((x(), torch.ones(1, 4))), "a layer on the host": lambda: nn.Linear(4, 2)(x()),
    "attention over keys on the host": lambda: attend(x()[None], torch.ones(1, 5, 4), torch.ones(1, 5, 4)),
    "NumPy": lambda: x().numpy(), "NumPy by another name": lambda: np.asarray(x()),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(device, what):
    with pytest.raises(DeviceFault):
        REFUSED[what]()


WAITS = {
    "item": lambda: x().sum().item(), "bool": lambda: bool((x() > 0).any()), "tolist": lambda: x().tolist(),
    "cpu": lambda: x().cpu(), "nonzero": lambda: x().nonzero(), "a boolean mask": lambda: x()[x() > 0],
    "equal": lambda: torch.equal(x(), x()), "unique": lambda: torch.unique(x()),
    "repeats": lambda: torch.repeat_interleave(torch.arange(2, device="cuda"), torch.arange(2, device="cuda")),
    "a new tensor": lambda: torch.tensor([1, 2], device="cuda"),
    "a tensor that is moved": lambda: torch.ones(2).to("cuda"),
    "a tensor that is copied": lambda: x().copy_(torch.ones(3, 4)),
    "a number for rows by an index": lambda: x().__setitem__(torch.arange(2, device="cuda"), 0.0),
    "a choice of a number on the host": lambda: torch.where(x() > 0, x(), torch.tensor(0.0)),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("what", WAITS)
def test_a_wait_or_a_hidden_copy_is_a_fault_in_a_step_alone(device, what, inference):
    with torch.inference_mode(inference):
        WAITS[what]()
        assert len(device.waits) + len(device.copies) >= 1
        with pytest.raises(DeviceFault, match="in a decode step"), device.decoding():
            WAITS[what]()


def test_what_goes_through_the_seam_is_counted(device):
    buffer = DeviceBuffer("cuda")
    with device.decoding():
        sent = to_device([1, 2], CUDA)
        first, second = (buffer.send(np.arange(n)) for n in (3, 2))
        assert (to_host(sent + second).tolist(), first.device) == ([1, 3], CUDA)
    assert device.transfers == {"sent": 3, "read": 1}
    assert first.data_ptr() == second.data_ptr(), "a buffer stays where it is"
    assert not device.waits
    assert not device.copies
