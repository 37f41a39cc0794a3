"""Recipes on synthetic frames and on folders, and committed weights: masks, training, scores and warnings."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea.errors import NotFound
from fovea_recipes.medical_seg.evaluation import mean_dice_at_half, score_frames
from fovea_recipes.medical_seg.polyps import draw_frame
from fovea_recipes.medical_seg.pranet_demo import PraNetDemo
from fovea_recipes.medical_seg.pranet_full import PraNetFull, PraNetV2Full
from fovea_recipes.training.data.mask_folders import find_masks
from fovea_recipes.training.data.synthetic import draw_split
from fovea_recipes.training.recipe import MultiScale, Schedule
from fovea_recipes.training.trainer import fit
from services.medical_seg.models.pranet import PraNetSegmenter, PraNetV2Segmenter
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights
from shared.vision.draw import encode

TINY = {"width": 0.0625, "decoder": 4}
SOON = Schedule(steps=4, batch=4, rate=3e-3, floor=1e-3, clamp=0.5, validate_every=2)
SMALL = {**TINY, "schedule": SOON, "train": 12, "valid": 10, "test": 20, "scale": MultiScale(side=64)}


@pytest.fixture
def folder(tmp_path):
    """Pictures and masks as data sets hold them: other sizes, other suffixes."""
    drawn = draw_split(draw_frame, "train", 10, 5, 96)
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for index, (image, mask) in enumerate(zip(drawn.images, drawn.truth, strict=True)):
        Image.fromarray(image).resize((120, 90)).save(tmp_path / "set" / "images" / f"{index}.jpg")
        Image.fromarray(mask).convert("L").resize((120, 90)).save(tmp_path / "set" / "masks" / f"{index}.png")
    return tmp_path / "set"


def test_pictures_and_masks_are_flipped_together(tmp_path):
    """Polyps differ from mucosa in colour: where masks and pictures part ways, that contrast is lost."""
    recipe = PraNetDemo(**{**SMALL, "train": 40, "scale": MultiScale(side=160, rates=(1.0,))})
    recipe.prepare(tmp_path)
    data = recipe.split("train")
    originals = {mask.tobytes() for mask in data.truth}
    flipped = 0
    for step in range(6):
        (batch,) = recipe.batches(step, np.random.default_rng(step))
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            flipped += mask[0].numpy().astype(bool).tobytes() not in originals
            for candidate, truth in zip(data.images, data.truth, strict=True):
                turned = [(s, np.flip(truth, s)) for s in ((), (0,), (1,), (0, 1))]
                match = [s for s, t in turned if t.any() and np.array_equal(t, mask[0].numpy().astype(bool))]
                if match:
                    red = np.flip(candidate[..., 0], match[0]).astype(np.float32) / 255
                    np.testing.assert_allclose(image[0].numpy() * 0.229 + 0.485, red, atol=1e-4)
    assert flipped > 5


def test_scores_separate_found_polyps_from_false_alarms():
    masks = np.zeros((4, 8, 8), bool)
    masks[:2, 2:5, 2:5] = True
    maps = np.where(masks, 0.9, 0.1).astype(np.float32)
    maps[3, 0, 0] = 0.5
    scores = score_frames(maps, masks)
    assert scores["dice_at_half"] == mean_dice_at_half(maps, masks) == 1
    assert (scores["empty_with_any_pixel"], scores["frames"], scores["empty_frames"]) == (0.5, 4, 2)


def test_the_full_recipe_steps_at_three_sizes_over_every_picture_once_per_epoch(folder):
    recipe = PraNetFull(folder=folder, schedule=SOON, valid=0.2, **TINY)
    recipe.prepare(folder)
    seen = [list(recipe.batches(step, np.random.default_rng(step))) for step in range(2)]
    assert [batch["image"].shape[-1] for batch in seen[0]] == [256, 352, 448]
    pictures = torch.cat([draw[1]["image"] for draw in seen])
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures) == 8
    assert ((seen[0][1]["mask"] > 0) & (seen[0][1]["mask"] < 1)).any()  # resizing makes masks soft


@pytest.mark.parametrize("kind", [PraNetFull, PraNetV2Full])
def test_a_full_recipe_trains_and_measures_on_the_folder_it_is_given(folder, tmp_path, kind):
    schedule = Schedule(steps=1, batch=4, rate=1e-4, validate_every=1)
    recipe = kind(folder=folder, held_out=folder, schedule=schedule, scale=MultiScale(side=64, mode="each"), **TINY)
    fitted = fit(recipe, tmp_path / "run")
    assert set(recipe.measure(fitted.network)) >= {"mean_dice", "s_measure", "empty_with_any_pixel"}
    assert "held-out" in recipe.facts()["measured_on"]


def test_pictures_without_masks_are_named_and_the_digest_of_pairs_changes_with_any_byte(folder, tmp_path):
    (folder / "masks" / "4.png").unlink()
    with pytest.raises(NotFound, match=r"'4\."):
        PraNetFull(folder=folder, **TINY).prepare(folder)
    before = find_masks(folder)[0].digest
    mask = folder / "masks" / "0.png"
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert find_masks(folder)[0].digest != before


@pytest.fixture(scope="module", params=[PraNetV2Segmenter])
def served(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    loaded = request.param.load(LoadContext(engine="torch", cache=place, weights=place / "none", threads=1))
    yield loaded
    loaded.close()


real = pytest.mark.parametrize("served", [PraNetSegmenter], indirect=True)


@pytest.mark.parametrize("shade", [0, 12, 128, 255])
def test_a_frame_without_contrast_is_answered_with_a_warning(served, shade):
    noise = np.random.default_rng(shade).integers(0, 3, (240, 320, 3))
    flat, example = SegmentIn(image=encode(np.clip(noise + shade, 0, 255).astype(np.uint8))), served.example()
    dark, real = served.predict([flat, example], CallContext())
    assert "no contrast" in dark.warnings[0]
    assert real.warnings == []


def test_served_masks_of_fresh_frames_are_as_good_as_told_and_the_example_is_found(served):
    drawn = draw_split(draw_frame, "test", 30, 77, 160)
    answers = served.predict(
        [SegmentIn(image=encode(image), include=("mask",)) for image in drawn.images], CallContext()
    )
    masks = np.stack([np.asarray(Image.open(io.BytesIO(answer.mask))) > 0 for answer in answers])
    measured = read_weights(PraNetV2Segmenter.folder / "pranet-v2.safetensors").manifest.metrics["dice_at_half"]
    assert mean_dice_at_half(masks.astype(np.float32), drawn.truth) == pytest.approx(measured, abs=0.02)
    assert [answer.empty for answer in answers][9::10] == [True, True, True]
    request = served.example()
    assert len(request.image) <= 15_000
    (answer,) = served.predict([request], CallContext())
    found = np.asarray(Image.open(io.BytesIO(answer.mask))) > 0
    truth = draw_split(draw_frame, "test", 1, 1, 160).truth[0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


@real
def test_the_polyp_of_the_sample_is_marked_and_only_what_is_no_frame_warned_of(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert (answer.warnings, answer.component_count) == ([], 1)
    (x, y), area = answer.components[0].centre, answer.components[0].area
    assert abs(x - 112) < 15
    assert abs(y - 178) < 15
    assert 2_000 < area < 12_000
    assert served.card.variant == "efficientnet-lite0"
    rng, rows = np.random.default_rng(0), np.mgrid[:240, :320][0]
    wall = np.repeat((140 + rows[..., None] / 8).astype(np.uint8), 3, axis=-1)
    others = [wall, rng.integers(0, 256, (240, 320, 3), np.uint8)]
    answers = served.predict([SegmentIn(image=encode(other)) for other in others], CallContext())
    assert all(answer.warnings for answer in answers)
