"""The pretended device refuses what a real one refuses, allows what it allows, and sees every wait and copy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shared.lm.host_transfer import DeviceBuffer, take_rows, to_device, to_host
from tests.device.pretend_cuda import CUDA, DeviceFault, PretendCuda, to_cuda


@pytest.fixture
def device():
    with PretendCuda().active() as made:
        yield made


def x() -> torch.Tensor:
    return torch.ones(3, 4, device="cuda")


REFUSED = {
    "an index on the host": lambda: x().index_copy_(0, torch.arange(3), x()),
    "rows by an index on the host": lambda: x()[torch.arange(2)],
    "rows by a list": lambda: x()[[0, 2]],
    "writing rows by an index on the host": lambda: x().__setitem__(torch.arange(2), 0.0),
    "a sum of both": lambda: x() + torch.ones(3, 4),
    "a mask on the host": lambda: x().masked_fill(torch.zeros(3, 4, dtype=torch.bool), 0),
    "joining both": lambda: torch.cat((x(), torch.ones(1, 4))),
    "a layer on the host": lambda: nn.Linear(4, 2)(x()),
    "attention over keys on the host": lambda: functional.scaled_dot_product_attention(
        x()[None], torch.ones(1, 5, 4), torch.ones(1, 5, 4)
    ),
    "NumPy": lambda: x().numpy(),
    "NumPy by another name": lambda: np.asarray(x()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(device, what):
    with pytest.raises(DeviceFault):
        REFUSED[what]()


ALLOWED = {
    "numbers": lambda: x() * 2.0 + 1,
    "a scalar tensor on the host": lambda: x() * torch.tensor(2.0),
    "a place by number": lambda: x()[1, 2],
    "writing a number": lambda: x().fill_diagonal_(3.0),
    "writing a number in one place": lambda: x().index_put_(
        (torch.zeros(1, dtype=torch.long, device=CUDA),), 2 * x()[0, 0]
    ),
    "a view": lambda: x().view(2, 6).T[1:],
    "what is made like another": lambda: torch.zeros_like(x()) + x().new_ones(3, 4),
    "a factory": lambda: torch.arange(3, device=CUDA) + torch.full((3,), 2, device="cuda"),
    "a selection on the device": lambda: torch.where(x() > 0, x(), 0.0),
    "rows that follow each other": lambda: take_rows(x(), [1, 2, 0]),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_cuda_allows_stays_on_the_device_and_waits_for_nothing(device, what):
    with device.decoding():
        found = ALLOWED[what]()
    assert found.device == CUDA
    assert found.is_cuda
    assert not device.waits


WAITS = {
    "item": lambda: x().sum().item(),
    "bool": lambda: bool((x() > 0).any()),
    "tolist": lambda: x().tolist(),
    "cpu": lambda: x().cpu(),
    "nonzero": lambda: x().nonzero(),
    "a boolean mask": lambda: x()[x() > 0],
    "equal": lambda: torch.equal(x(), x()),
    "unique": lambda: torch.unique(x()),
    "repeats": lambda: torch.repeat_interleave(torch.arange(2, device="cuda"), torch.arange(2, device="cuda")),
    "a new tensor": lambda: torch.tensor([1, 2], device="cuda"),
    "a tensor that is moved": lambda: torch.ones(2).to("cuda"),
    "a tensor that is copied": lambda: x().copy_(torch.ones(3, 4)),
}


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
        assert to_host(sent + second).tolist() == [1, 3]
        assert first.device == CUDA
    assert device.transfers == {"sent": 3, "read": 1}
    assert first.data_ptr() == second.data_ptr(), "a buffer stays where it is"
    assert not device.waits
    assert not device.copies


def test_a_module_is_copied_and_its_original_stays(device):
    layer = nn.Linear(4, 2)
    moved = to_cuda(copy.deepcopy(layer), device)
    assert {p.device.type for p in moved.parameters()} == {"cuda"}
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
    assert torch.equal(moved(x()).cpu(), layer(torch.ones(3, 4)))
    assert torch.equal(copy.deepcopy(layer).to("cuda")(x()).cpu(), layer(torch.ones(3, 4)))
