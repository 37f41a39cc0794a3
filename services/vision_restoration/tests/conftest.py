"""Golden data of this service, and the rule that fills networks and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from services.vision_restoration.restorer import Restorer
from shared.registry import LoadContext, network
from shared.registry.weights import Manifest, NetworkSpec, write_weights
from tests.golden import read_golden
from tests.harness.models import toy_card
from tests.harness.public_rule import one_thread, smooth, uniform  # noqa: F401  # a fixture among them

GOLDEN = Path(__file__).parent / "golden"

SLIM = {
    "widths": (4, 4, 8, 8, 8), "whole": False, "features": 16, "body": 16, "groups": 2, "blocks": 2, "heads": 2,
    "buffers": False,
}  # fmt: skip
"""A network that is quick and still has every part."""


def _weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    u, last = (2 * uniform(key, shape) - 1) * np.sqrt(3), key.rpartition(".")[2]
    if last == "relative_position_bias_table":
        value = 0.5 * u
    elif last == "bias":
        value = 0.05 * u
    elif len(shape) == 1:
        value = 1 + 0.1 * u
    else:
        value = 1.4 * u / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@pytest.fixture(scope="session")
def golden():
    return lambda name: read_golden(GOLDEN / name)


@pytest.fixture(scope="session")
def fill():
    """Fill a network's state dict by rule; what it derives it keeps."""

    def fill_in(net: nn.Module, prefix: str = "") -> nn.Module:
        state = net.state_dict()
        drawn = [key for key in state if not key.endswith(("attn_mask", "relative_position_index"))]
        state |= {key: _weight(prefix + key, tuple(state[key].shape)) for key in drawn}
        if "deconv3.conv2d.bias" in state:
            state["deconv3.conv2d.bias"] += 0.5
        net.load_state_dict(state)
        return net.eval()

    return fill_in


@pytest.fixture(scope="session")
def picture():
    def draw(n: int, h: int, w: int, name: str = "input") -> torch.Tensor:
        name, shape = f"{name}:{n}x3x{h}x{w}", (n, 3, h, w)
        low = smooth(f"{name}:lo", shape, 16)
        return torch.from_numpy((0.7 * low + 0.3 * uniform(f"{name}:hi", shape)).astype(np.float32))

    return draw


@pytest.fixture(scope="session")
def slim():
    """A small restorer with lively random weights: every part of it leaves a trace in the answer."""

    def build(variant: str = "paper", **more: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            net: nn.Module = network("rrformer-restorer", variant=variant, **{**SLIM, **more})
            with torch.no_grad():
                for parameter in net.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(0, 1.6 / parameter[0].numel() ** 0.5)
                net.net.deconv3.conv2d.bias += 0.5
        return net.eval()

    return build


@pytest.fixture(scope="session")
def stored(slim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    net = slim()
    manifest = Manifest(
        name="rrformer-restorer", origin="trained", dtype="float32",
        parameters=sum(p.numel() for p in net.parameters()),
        network=NetworkSpec(name="rrformer-restorer", config={**SLIM, "variant": "paper"}),
    )  # fmt: skip
    write_weights(folder, {key: tensor.numpy() for key, tensor in net.state_dict().items()}, manifest)
    return folder


@pytest.fixture(scope="session")
def served(stored, tmp_path_factory):
    restorer = loaded_from(stored, tmp_path_factory.mktemp("home"))
    yield restorer
    restorer.close()


def loaded_from(packaged: Path, home: Path, engine: Any = "auto", **options: str) -> Restorer:
    class Small(Restorer):
        folder = packaged
        card = toy_card("small", "restore", variants=("paper", "released"))

    place = LoadContext(cache=home / "cache", weights=home / "weights", threads=1, engine=engine, options=options)
    return Small.load(place)


@pytest.fixture(scope="session")
def load_from():
    return loaded_from
