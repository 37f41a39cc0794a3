"""PraNet on EfficientNet-Lite0: its layout, and a training on a folder of frames and masks that ends in weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.errors import InvalidOption
from fovea_recipes.medical_seg.pranet_lite import PraNetLiteRecipe
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import MultiScale, Schedule
from fovea_recipes.training.trainer import fit
from shared.registry import network


def frames(folder: Path, count: int) -> Path:
    """Brown pictures with one bright disc each, and its mask; every fourth has none."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    for index in range(count):
        y, x = rng.uniform(30, 66, 2)
        mask = ((rows - y) ** 2 + (columns - x) ** 2 < 15**2) & bool(index % 4)
        pixels = np.where(mask[..., None], (230, 160, 140), (120, 60, 50)) + rng.normal(0, 8, (96, 96, 3))
        for kind, array in (("images", np.clip(pixels, 0, 255).astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index:02}.png")
    return folder


def recipe(folder: Path, steps: int = 2) -> PraNetLiteRecipe:
    return PraNetLiteRecipe(
        data=folder,
        choose=4,
        scale=MultiScale(side=96, rates=(1.0,)),
        schedule=Schedule(steps=steps, batch=4, rate=1e-3, validate_every=steps),
    )


def test_the_layout_is_pranets_behind_another_backbone():
    net = network("pranet-lite").eval()
    assert sum(p.numel() for p in net.parameters()) == 4_348_311
    with torch.no_grad():
        maps = net(torch.zeros(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [(2, 1, 64, 96)] * 4
    network("pranet-lite", reverse=False).load_state_dict(net.state_dict())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("trained")
    made = recipe(frames(home / "data", 20))
    return made, publish(made, fit(made, home / "run"), home / "out"), home / "out" / "pranet.safetensors"


@pytest.mark.release
def test_it_learns_to_mark_discs(tmp_path):
    made = recipe(frames(tmp_path / "data", 24), steps=60)
    assert made.measure(fit(made, tmp_path / "run").network)["dice_at_half"] > 0.8


def test_samples_without_a_polyp_come_from_frames_with_one(tmp_path):
    made = recipe(frames(tmp_path / "data", 20)).model_copy(update={"empty": 0.9})
    made.prepare(tmp_path)
    shares = [
        (next(made.batches(step, np.random.default_rng(step)))["mask"].amax(dim=(1, 2, 3)) < 0.5).float().mean()
        for step in range(6)
    ]
    assert np.mean(shares) > 0.6


def test_too_little_to_train_on_is_refused(tmp_path):
    with pytest.raises(InvalidOption, match="2 pictures with masks"):
        recipe(frames(tmp_path / "data", 2)).prepare(tmp_path)
