"""Recipes on synthetic frames, on folders and by docs/09-your-own-data.md up to an answer; committed weights."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from fovea.api.mask import SegmentIn
from fovea.cli.option_groups import CommandApp
from fovea.errors import InvalidOption, NotFound
from fovea_recipes.medical_seg.evaluation import mean_dice_at_half, score_frames
from fovea_recipes.medical_seg.polyps import draw_frame
from fovea_recipes.medical_seg.pranet_demo import PraNetDemo
from fovea_recipes.medical_seg.pranet_full import PraNetFull, PraNetV2Full
from fovea_recipes.medical_seg.pranet_lite import PraNetLiteRecipe
from fovea_recipes.training.cli import configure_recipe, train
from fovea_recipes.training.data.mask_folders import find_masks
from fovea_recipes.training.data.synthetic import draw_split
from fovea_recipes.training.progress_report import ProgressReport, format_time
from fovea_recipes.training.recalibrate import recalibrate
from fovea_recipes.training.recipe import MultiScale, Schedule, recipe_named, recipes
from fovea_recipes.training.trainer import FitProgress, fit
from services.medical_seg.models.pranet import PraNetSegmenter, PraNetV2Segmenter
from shared.registry import CallContext, LoadContext
from shared.registry.weights import read_weights
from shared.serving.build_app import build
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings, settings
from shared.vision.draw import encode
from tests.harness.waiting import wait_until

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


def test_the_full_recipe_steps_at_three_sizes_over_every_picture_once_an_epoch_and_names_the_unmasked(folder, tmp_path):
    recipe = PraNetFull(folder=folder, schedule=SOON, valid=0.2, **TINY)
    recipe.prepare(folder)
    assert recipe.model_dump(mode="json")["folder"] == folder.name
    seen = [list(recipe.batches(step, np.random.default_rng(step))) for step in range(2)]
    assert [batch["image"].shape[-1] for batch in seen[0]] == [256, 352, 448]
    pictures = torch.cat([draw[1]["image"] for draw in seen])
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures) == 8
    assert ((seen[0][1]["mask"] > 0) & (seen[0][1]["mask"] < 1)).any()  # resizing makes masks soft
    (folder / "masks" / "4.png").unlink()
    with pytest.raises(NotFound, match=r"'4\."):
        PraNetFull(folder=folder, **TINY).prepare(folder)
    before = find_masks(folder)[0].digest
    mask = folder / "masks" / "0.png"
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert find_masks(folder)[0].digest != before


@pytest.mark.parametrize("kind", [pytest.param(PraNetFull, marks=pytest.mark.release), PraNetV2Full])
def test_a_full_recipe_trains_and_measures_on_the_folder_it_is_given(folder, tmp_path, kind):
    schedule = Schedule(steps=1, batch=4, rate=1e-4, validate_every=1)
    recipe = kind(folder=folder, held_out=folder, schedule=schedule, scale=MultiScale(side=64, mode="each"), **TINY)
    fitted = fit(recipe, tmp_path / "run")
    assert set(recipe.measure(fitted.network)) >= {"mean_dice", "s_measure", "empty_with_any_pixel"}
    assert "held-out" in recipe.facts()["measured_on"]


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
    requests = [SegmentIn(image=encode(image), include=("mask",)) for image in drawn.images]
    answers = served.predict(requests, CallContext())
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


def recipe(folder: Path, steps: int = 2, **more: Any) -> PraNetLiteRecipe:
    schedule = Schedule(steps=steps, batch=4, rate=1e-3, validate_every=steps)
    return PraNetLiteRecipe(data=folder, choose=4, scale=MultiScale(side=96, rates=(1.0,)), schedule=schedule, **more)


@pytest.mark.release
def test_it_learns_to_mark_discs(tmp_path):
    made = recipe(frames(tmp_path / "data", 24), steps=60)
    assert made.measure(fit(made, tmp_path / "run").network)["dice_at_half"] > 0.8


def test_samples_without_a_polyp_come_from_frames_with_one_and_too_few_are_refused(tmp_path):
    made = recipe(frames(tmp_path / "data", 20), empty=0.9)
    made.prepare(tmp_path)
    shares = [
        (next(made.batches(step, np.random.default_rng(step)))["mask"].amax(dim=(1, 2, 3)) < 0.5).float().mean()
        for step in range(6)
    ]
    assert np.mean(shares) > 0.6
    assert made.vary(np.zeros((1, 1, 3), np.uint8), np.random.default_rng(0)).shape == (1, 1, 3)
    with pytest.raises(InvalidOption, match="2 pictures with masks"):
        recipe(frames(tmp_path / "few", 2)).prepare(tmp_path)
    with pytest.raises(InvalidOption, match="0 held-out marks"):
        recipe(tmp_path / "data", held_out="00|04").prepare(tmp_path)
    dot = np.zeros((960, 960), bool)
    dot[480, 480] = True
    for kind in ("images", "masks"):
        Image.fromarray(dot).save(tmp_path / "data" / kind / "04.png")
    with pytest.raises(InvalidOption, match="0 held-out marks"):
        recipe(tmp_path / "data", held_out="00|04").prepare(tmp_path)


DOC = Path(__file__).parents[4] / "docs" / "09-your-own-data.md"
cli = CommandApp()
cli.command()(train)

SHORT = ("schedule.steps=2", "schedule.batch=4", "schedule.validate_every=2", "choose=4", "scale.side=96")


def command() -> list[str]:
    (line,) = re.findall(r"^fovea train pranet .*$", DOC.read_text(), re.MULTILINE)
    return shlex.split(line)[2:]


def test_every_command_and_knob_of_the_page_is_one_of_a_recipe():
    page = DOC.read_text()
    lines = [shlex.split(line) for line in re.findall(r"^fovea train .*$", page, re.MULTILINE)]
    assert [words[2] for words in lines] == ["patnet", "pranet", "yolo9tr"]
    for words in lines:
        knobs = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        configure_recipe(recipe_named(words[2]), ["data=x", *knobs])
    knobs = re.findall(r"`(?:--set )?'?([a-z_.]+=[^`']+)'?`", page)
    assert len(knobs) > 5
    for knob in knobs:
        group, _, name = knob.partition("=")[0].rpartition(".")
        fields = [kind.model_fields for kind in recipes().values() if "data" in kind.model_fields]
        groups = [f[group].annotation.model_fields for f in fields if group in f] if group else fields
        assert any(name in each for each in groups) or knob.startswith("OMP_"), knob


def test_a_long_training_says_every_so_often_what_it_does_in_times_of_people():
    text = io.StringIO()
    with ProgressReport(Console(file=text, width=200), interval_s=0.05) as report:
        report.begin("Reading the data")
        wait_until(lambda: text.getvalue().count("Reading the data") > 2)
        recipe = SimpleNamespace(name="teacher", schedule=SimpleNamespace(steps=1000))
        for step in (1, 2):
            report.step(recipe, FitProgress(step=step, loss=0.5))
        wait_until(lambda: "teacher: step 2 of 1,000, loss 0.500, about " in text.getvalue())
    assert "Training teacher, 1,000 steps …" in text.getvalue()
    assert [format_time(seconds) for seconds in (4.4, 59.6, 185)] == ["4 s", "1 min 0 s", "3 min 5 s"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with the frames of the document in it, and nothing served yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path / "fovea"))
    settings.cache_clear()
    frames(tmp_path / "discs", 12)
    yield tmp_path
    settings.cache_clear()


def test_a_folder_with_coco_masks_becomes_a_served_model_and_learns_its_warnings_anew(home, monkeypatch):
    shutil.rmtree(home / "discs" / "masks")
    outline = {"category_id": 1, "segmentation": [[9, 9, 60, 9, 60, 60, 9, 60]]}
    labels = [{"image_id": index, **outline} for index in range(12) if index % 4]
    images = [{"id": index, "file_name": f"{index:02}.png"} for index in range(12)]
    coco = {"images": images, "annotations": labels, "categories": [{"id": 1, "name": "disc"}]}
    (home / "discs" / "coco.json").write_text(json.dumps(coco))
    args = [*command(), *(part for knob in SHORT for part in ("--set", knob))]
    ran = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "10 pictures to train on, 2 held out" in ran.output
    assert "dice_at_half" in ran.output
    frame = (home / "discs" / "images" / "01.png").read_bytes()
    with ready_client(build("medical-seg", settings=Settings(preload="my-discs"))) as client:
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert {"pranet", "my-discs"} <= listed.keys()
        answer = client.post("/v1/segment", params={"model": "my-discs"}, files={"image": frame})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "my-discs"
        card = client.get("/v1/models/my-discs").json()
        (dice,) = [metric for metric in card["metrics"] if metric["name"] == "dice_at_half"]
        assert dice["data"] == "the folder discs (real), 2 held-out pictures"
        assert "95 % interval" in dice["note"]
    (home / "empty").mkdir()
    monkeypatch.chdir(home / "empty")
    file = home / "fovea" / "weights" / "my-discs.safetensors"
    assert "false_warnings_crops" in json.loads(file.with_suffix(".json").read_text())["metrics"]
    learnt = recalibrate(file, home / "discs").metrics
    assert "false_warnings" in learnt
    assert "false_warnings_crops" not in learnt, "what was not measured again"
    assert not list(Path.cwd().iterdir())


def test_a_run_that_was_stopped_leaves_nothing_to_serve(home):
    args = [*command(), "--set", "schedule.rate=1e30", *(part for knob in SHORT[:-1] for part in ("--set", knob))]
    args += ["--set", "schedule.warm_up=0", "--set", "schedule.steps=6", "--set", "scale.side=64"]
    assert CliRunner().invoke(cli, args).exit_code != 0
    assert not list((home / "fovea").rglob("my-discs.safetensors"))
