"""Torch takes and gives every datatype it has, leaves the caller's arrays alone, and blames sizes clearly."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption, NotReady, TooLarge
from shared.engines.torch import TORCH_DATATYPES, TorchEngine
from shared.rpc.tensors import DTYPES

torch.set_num_threads(1)


def spec(name="x", datatype="FP32", shape=(-1, 3)):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


class Doubled(nn.Module):
    def forward(self, x):
        return x, x + x

    def only_double(self, x):
        return (x + x,)


@pytest.mark.parametrize("datatype", TORCH_DATATYPES.values())
def test_every_datatype_goes_in_and_comes_out_unchanged(datatype):
    engine = TorchEngine(nn.Identity(), [spec(datatype=datatype)], [spec("y", datatype)])
    x = (np.arange(6).reshape(2, 3) % 2).astype(DTYPES[datatype])
    y = engine.run({"x": x})["y"]
    assert y.dtype == DTYPES[datatype]
    assert (y == x).all()


def test_several_outputs_are_named_in_order_and_one_method_may_be_called_instead_of_the_network():
    engine = TorchEngine(Doubled(), [spec()], [spec("same"), spec("twice")])
    found = engine.run({"x": np.ones((2, 3), np.float32)})
    assert list(found) == ["same", "twice"]
    assert (found["twice"] == 2).all()
    network = Doubled()
    engine = TorchEngine(network, [spec()], [spec("twice")], call=network.only_double)
    assert (engine.run({"x": np.ones((1, 3), np.float32)})["twice"] == 2).all()
    engine.close()


def test_read_only_and_strided_arrays_are_taken():
    frozen = np.ones((4, 3), np.float32)
    frozen.flags.writeable = False
    engine = TorchEngine(nn.Identity(), [spec()], [spec("y")])
    assert (engine.run({"x": frozen[::2]})["y"] == 1).all()
    assert engine.run({"x": np.ones((2, 6), np.float32)[:, ::2]})["y"].shape == (2, 3)
    half = TorchEngine(nn.Identity(), [spec(datatype="BF16")], [spec("y", "BF16")])
    wide = np.arange(12).astype(ml_dtypes.bfloat16).reshape(2, 6)[:, ::2]
    assert (half.run({"x": wide})["y"] == wide).all()


def test_network_is_in_eval_mode_and_keeps_no_gradients():
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    engine = TorchEngine(network, [spec()], [spec("y")])
    x = np.ones((1, 3), np.float32)
    assert (engine.run({"x": x})["y"] == engine.run({"x": x})["y"]).all()
    assert not network.training


def test_sizes_that_the_network_cannot_take_are_the_callers_mistake():
    engine = TorchEngine(nn.Linear(3, 3), [spec(shape=(-1, -1))], [spec("y")])
    with pytest.raises(InvalidOption, match=r"can't run x FP32 \[2, 5\]"):
        engine.run({"x": np.zeros((2, 5), np.float32)})
    with pytest.raises(InvalidOption) as caught:
        engine.run({"x": np.zeros((2, 5), np.int32)})
    assert caught.value.field == "x"


def refuse():
    raise InvalidOption("multiples of 32 only")


@pytest.mark.parametrize(
    ("fail", "kind", "told"),
    [(lambda: torch.empty(2**60), TooLarge, "not enough memory"), (refuse, InvalidOption, "multiples of 32")],
)
def test_memory_that_runs_out_is_too_large_and_errors_of_ours_pass_through(fail, kind, told):
    class Failing(nn.Module):
        def forward(self, x):
            return fail()

    with pytest.raises(kind, match=told):
        TorchEngine(Failing(), [spec()], [spec("y")]).run({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("device", ["cuda:77", "no-such-device"])
def test_missing_device_is_said(device):
    with pytest.raises(NotReady, match=device):
        TorchEngine(nn.Linear(3, 3), [spec()], [spec("y")], device=device)


def test_threads_share_an_engine():
    engine = TorchEngine(nn.Linear(3, 3), [spec()], [spec("y")], threads=1)
    jobs = [np.full((1 + i % 4, 3), i, np.float32) for i in range(64)]
    alone = [engine.run({"x": x})["y"] for x in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: engine.run({"x": x})["y"], jobs))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))
