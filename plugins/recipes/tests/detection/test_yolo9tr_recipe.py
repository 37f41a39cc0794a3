"""The recipe of YOLO9tr's demo weights: targets that stay on their objects, and the branch that is kept."""

import numpy as np
import torch

from fovea_recipes.detection.yolo9tr.data import NAMES
from fovea_recipes.detection.yolo9tr.recipe import Yolo9trDemo
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit
from services.detection.models.yolo9tr_network import Yolo9tr
from shared.registry import network
from shared.registry.weights import read_weights

TINY = Yolo9trDemo(
    schedule=Schedule(steps=2, batch=2, rate=1e-3, validate_every=2), width=0.0625, side=96, train=4, valid=2, test=2
)


def test_targets_stay_on_their_objects_when_a_picture_is_flipped(tmp_path):
    TINY.prepare(tmp_path)
    for step in range(12):
        batch = next(iter(TINY.batches(step, np.random.default_rng(step))))
        image, targets = batch["image"].mean(dim=1), batch["targets"]
        for index, kind, x, y, w, h in targets.tolist():
            if NAMES[int(kind)] == "D40":  # the middle of a hole is dark
                around = image[int(index)]
                assert around[int(y * 96), int(x * 96)] < around.mean() * 0.85
            assert 0 < w <= 1
            assert 0 < h <= 1


def test_a_fit_publishes_the_main_branch_alone(tmp_path):
    fitted = fit(TINY, tmp_path / "fit")
    manifest = publish(TINY, fitted, tmp_path / "out")
    weights = read_weights(tmp_path / "out" / "yolo9tr-synthetic.safetensors")
    assert manifest.network.config["branch"] == "main"
    assert {"map50", "map50_95"} <= manifest.metrics.keys()
    served = network(manifest.network.name, **manifest.network.config)
    served.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    assert isinstance(served, Yolo9tr)
    x = torch.rand(1, 3, 64, 64)
    whole = fitted.network.eval()
    with torch.no_grad():
        assert torch.allclose(served.eval()(x)[0][0], whole(x)[0][0], atol=1e-5)


def test_the_optimiser_lets_only_kernels_decay():
    groups = TINY.optimizer(TINY.network()).param_groups
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (TINY.schedule.decay, 0)
    assert all(p.ndim > 1 for p in groups[0]["params"])
