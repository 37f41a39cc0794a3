"""RRFormer on a folder of photographs: pairs behind glass are what they say, and a few steps end in weights."""

from pathlib import Path

import numpy as np
from PIL import Image

from fovea_recipes.training.publish import publish
from fovea_recipes.training.recipe import Schedule
from fovea_recipes.training.trainer import fit
from fovea_recipes.vision_restoration.glass import behind_glass
from fovea_recipes.vision_restoration.rrformer_photographs import RRFormerPhotographs


def photographs(folder: Path) -> Path:
    for seed in range(8):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
        place = folder / ("indoors" if seed % 2 else "outdoors")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((120, 110), Image.Resampling.BICUBIC).save(place / f"{seed}.png")
    return folder


def test_a_pane_without_light_before_it_leaves_the_scene_alone():
    scene = np.random.default_rng(0).random((48, 48, 3), np.float32) * 0.8
    apart = []
    for seed in range(20):
        mixed, clean = behind_glass(scene, np.zeros_like(scene), np.random.default_rng(seed))
        assert (clean <= scene + 1e-5).all(), "glass adds no light"
        apart.append(float((mixed - clean).mean()))
    assert min(apart) < 0.01, "without a veil nothing is added"
    assert min(apart) > -0.01


def test_a_reflection_only_adds_light():
    rng = np.random.default_rng(1)
    scene, other = (rng.random((48, 48, 3), np.float32) for _ in range(2))
    added = [np.subtract(*behind_glass(scene, other, np.random.default_rng(seed))).mean() for seed in range(20)]
    assert min(added) > -0.005
    assert max(added) > 0.05


def test_a_folder_of_photographs_becomes_a_restorer(tmp_path):
    made = RRFormerPhotographs(
        data=photographs(tmp_path / "data"),
        size=64,
        test=6,
        share=0.3,
        schedule=Schedule(steps=2, batch=2, rate=1e-4, validate_every=2),
    )
    manifest = publish(made, fit(made, tmp_path / "run"), tmp_path / "out")
    assert {"psnr", "psnr_identity", "psnr_gain"} <= manifest.metrics.keys()
    assert manifest.bytes < 4_000_000
