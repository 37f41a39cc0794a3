"""Recipes of boxes and classes: folders of own data, and drawn pictures."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.errors import Conflict, InvalidOption
from fovea_recipes.detection import class_recipe
from fovea_recipes.detection.class_recipe import ClassRecipe, EfficientNetLite0Recipe, FasterNetRecipe, PATNetRecipe
from fovea_recipes.detection.hieraedgenet.data import KINDS
from fovea_recipes.detection.hieraedgenet.recipe import HieraEdgeNetDemo, rotate_slides
from fovea_recipes.detection.hieraedgenet_cells import HieraEdgeNetCells
from fovea_recipes.detection.yolo9tr.data import NAMES
from fovea_recipes.detection.yolo9tr.recipe import Yolo9trDemo
from fovea_recipes.detection.yolo9tr_roads import Yolo9trRoads
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recalibrate import recalibrate
from fovea_recipes.training.recipe import MultiScale, Schedule
from fovea_recipes.training.trainer import fit
from services.detection.models.yolo9tr_network import Yolo9tr
from shared.registry import network
from shared.registry.weights import read_weights
from tests.harness.hypothesis_profiles import in_depth

SHORT = Schedule(steps=2, batch=4, rate=1e-3, validate_every=2)


def squares(folder: Path, count: int) -> Path:
    """Grey pictures with one bright square each, boxed in YOLO's text."""
    (folder / "labels").mkdir(parents=True)
    (folder / "classes.txt").write_text("square\n")
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(60, 90, (96, 128, 3), np.uint8)
        x, y = rng.integers(0, 80), rng.integers(0, 60)
        pixels[y : y + 30, x : x + 40] += 120
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
        (folder / "labels" / f"{index:02}.txt").write_text(f"0 {(x + 20) / 128} {(y + 15) / 96} {40 / 128} {30 / 96}")
    return folder


def colours(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for name, base in (("blue", (40, 40, 200)), ("red", (200, 40, 40))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(base) + rng.normal(0, 20, (70, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


@pytest.mark.parametrize("kind", in_depth([HieraEdgeNetCells, Yolo9trRoads], [HieraEdgeNetCells]))
def test_a_folder_of_boxes_becomes_a_detector(kind, tmp_path):
    scale = MultiScale(side=64, rates=(1.0,))
    made = kind(data=squares(tmp_path / "data", 14), side=64, scale=scale, schedule=SHORT, choose=2, start=None)
    manifest = publish(made, fit(made, tmp_path / "run"), tmp_path / "out")
    assert {"map50", "map50_95", "ap50_square", "count_error_square"} <= manifest.metrics.keys()
    assert manifest.data["names"] == "square"
    assert read_weights(tmp_path / "out" / f"{made.weights}.safetensors").manifest.recipe["side"] == 64
    survey = made.survey()
    assert survey is not None
    assert survey.classes == {"square": 14}


def test_boxes_of_a_batch_lie_on_their_squares(tmp_path):
    scale = MultiScale(side=96, rates=(1.0,))
    made = HieraEdgeNetCells(data=squares(tmp_path / "data", 14), side=96, scale=scale, schedule=SHORT, choose=2)
    made.prepare(tmp_path)
    inside, outside = [], []
    for step in range(8):
        (batch,) = made.batches(step, np.random.default_rng(step))
        for index, image in enumerate(batch["image"].mean(dim=1)):
            covered = np.zeros((96, 96), bool)
            for _, _, x, y, w, h in batch["targets"][batch["targets"][:, 0] == index].tolist():
                x1, y1, x2, y2 = (round(value * 96) for value in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                covered[y1:y2, x1:x2] = True
            if covered.any():
                inside.append(float(image[covered].mean()))
                outside.append(float(image[~covered].mean()))
    assert np.mean(inside) > np.mean(outside) + 0.15


def test_few_pictures_choose_by_a_box_and_train_on_one_and_every_class_is_trained_on(tmp_path):
    data = squares(tmp_path / "data", 12)
    for label in sorted((data / "labels").iterdir())[4:]:
        label.write_text("")
    for seed in range(12):
        made = HieraEdgeNetCells(data=data, held_out="^0[01]", schedule=SHORT, choose=2, seed=seed, start=None)
        made.prepare(tmp_path)
        assert all(sum(map(len, part.rows)) > 0 for part in (made._choose, made._train)), seed
    with pytest.raises(InvalidOption, match="1 pictures with boxes to train on"):
        made.model_copy(update={"held_out": "^0[0-2]"}).gather()
    for label in range(6):
        colours(tmp_path / "six" / f"train{label}", 2)
        for name in ("blue", "red"):
            shutil.copytree(tmp_path / "six" / f"train{label}" / name, tmp_path / "classes" / f"{name}{label}")
    for seed in range(6):
        classes = _small(EfficientNetLite0Recipe, tmp_path / "classes", held_out="nowhere|00.png", seed=seed)
        classes.prepare(tmp_path)
        assert min(classes._train.counts.values()) == 1
        assert len(classes._choose) > 0


def test_a_rare_class_is_drawn_as_often_as_any_other_and_is_in_view(tmp_path):
    data = squares(tmp_path / "data", 24)
    (data / "classes.txt").write_text("square\nrare\n")
    for index in (3, 17):
        label = data / "labels" / f"{index:02}.txt"
        label.write_text("1" + label.read_text()[1:])
    schedule, scale = SHORT.model_copy(update={"batch": 64}), MultiScale(side=96, rates=(1.0,))
    more = {"choose": 1, "balance": 1.0, "mosaic": 0.0}
    made = HieraEdgeNetCells(data=data, side=96, scale=scale, schedule=schedule, **more)
    made.prepare(tmp_path)
    (batch,) = made.batches(0, np.random.default_rng(0))
    assert 0.3 < float((batch["targets"][:, 1] == 1).float().mean()) < 0.7
    assert len(batch["targets"][:, 0].unique()) > 55


def _small(kind: type[ClassRecipe], folder: Path, **more: Any) -> ClassRecipe:
    return kind(data=folder, side=64, schedule=SHORT, **more)


def _train(recipe: ClassRecipe, data: Path, home: Path) -> SimpleNamespace:
    """A recipe that is fitted and published, its data, and where its weights are."""
    manifest = publish(recipe, fit(recipe, home / "run"), home / "out")
    file = home / "out" / f"{recipe.weights}.safetensors"
    return SimpleNamespace(recipe=recipe, data=data, file=file, manifest=manifest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours") / "data", 10)


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    return _train(_small(EfficientNetLite0Recipe, folder), folder, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module", params=[PATNetRecipe])
def taught(request, folder, tmp_path_factory):
    recipe = _small(request.param, folder, teacher=_small(EfficientNetLite0Recipe, folder))
    return _train(recipe, folder, tmp_path_factory.mktemp("taught"))


@pytest.mark.parametrize("taught", in_depth([PATNetRecipe, FasterNetRecipe], [PATNetRecipe]), indirect=True)
def test_a_folder_of_classes_becomes_a_classifier(taught):
    assert {"top_1", "teacher_top_1", "recall.blue", "recall.red"} <= taught.manifest.metrics.keys()
    assert taught.manifest.data["names"] == "blue,red"


def test_a_teacher_is_trained_where_its_student_is(folder, tmp_path, monkeypatch):
    asked = Mock(side_effect=KeyError)
    monkeypatch.setattr(class_recipe, "fit", asked)
    with pytest.raises(KeyError):
        fit(_small(PATNetRecipe, folder), tmp_path, device="cpu:0")
    assert asked.call_args.kwargs["device"] == "cpu:0"


def test_a_start_is_a_file_of_fitting_layers_and_the_manifest_keeps_only_its_name(teacher, tmp_path):
    again = teacher.recipe.model_copy(update={"start": str(teacher.file)})
    again.prepare(tmp_path)
    held = {key: torch.from_numpy(array) for key, array in read_weights(teacher.file).arrays.items()}
    built = again.network().state_dict()
    assert held.keys() == built.keys()
    assert all(torch.equal(built[key], tensor) for key, tensor in held.items() if tensor.is_floating_point())
    assert again.model_dump(mode="json")["start"] == "efficientnet-lite0"
    made = PATNetRecipe(data=teacher.data, side=64, start=str(teacher.file))
    made.gather()
    with pytest.raises(InvalidOption, match="No layer of efficientnet-lite0 has the name and shape of one of patnet"):
        made.network()
    shutil.rmtree(colours(tmp_path / "data", 4) / "red")
    with pytest.raises(InvalidOption, match="1 classes"):
        PATNetRecipe(data=tmp_path / "data").prepare(tmp_path)


def test_warnings_are_learnt_anew_without_touching_the_network(taught, tmp_path):
    other = squares(tmp_path / "squares", 6)
    file = Path(shutil.copytree(taught.file.parent, tmp_path / "out")) / taught.file.name
    arrays = read_weights(file).arrays
    after = recalibrate(file, taught.data, foreign=(other,))
    again = read_weights(file)
    assert all(np.array_equal(arrays[key], array) for key, array in again.arrays.items())
    assert {"auroc_squares", "warned_squares", "auroc_unlearnt_squares"} <= after.metrics.keys()
    assert (after.metrics["top_1"], after.recipe["foreign"]) == (taught.manifest.metrics["top_1"], ["squares"])
    assert "foreign" not in taught.manifest.recipe
    assert "familiar.directions" in again.familiar
    with pytest.raises(Conflict, match="is not the data"):
        recalibrate(file, colours(tmp_path / "more", 11))


SOON = Schedule(steps=2, batch=2, rate=1e-3, validate_every=2)
TINY = Yolo9trDemo(schedule=SOON, width=0.0625, side=96, train=4, valid=2, test=2)


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


def test_a_fit_publishes_the_main_branch_alone_and_lets_only_kernels_decay(tmp_path):
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
    groups = TINY.optimizer(TINY.network()).param_groups
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (TINY.schedule.decay, 0)
    assert all(p.ndim > 1 for p in groups[0]["params"])


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_turned_box_stays_around_its_grain(turns, flip):
    image = np.zeros((40, 40, 3), np.uint8)
    image[4:10, 12:30] = 255  # x 12..30, y 4..10
    rows = np.array([[2, 21 / 40, 7 / 40, 18 / 40, 6 / 40]], np.float32)
    made, boxes = rotate_slides(image, rows, turns, flip=flip)
    ys, xs = np.nonzero(made[..., 0])
    kind, x, y, w, h = boxes[0]
    assert kind == 2
    np.testing.assert_allclose(
        [x * 40, y * 40, w * 40, h * 40],
        [(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1],
        atol=1e-4,
    )
    assert rows[0, 1] == np.float32(21 / 40)  # the caller's rows are its own


def test_the_true_boxes_score_one_and_count_right(tmp_path, monkeypatch):
    small = HieraEdgeNetDemo(train=6, valid=2, test=2, side=96)
    small.prepare(tmp_path)

    def perfect(_net, images):
        made = torch.zeros(len(images), 4 + len(KINDS), 10)
        for index in range(len(images)):
            for place, (kind, x1, y1, x2, y2) in enumerate(small.split("test").boxes(index).tolist()):
                made[index, :4, place] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                made[index, 4 + int(kind), place] = 0.9
        return made

    monkeypatch.setattr("fovea_recipes.detection.hieraedgenet.recipe.predict_slides", perfect)
    found = small.measure(torch.nn.Identity())
    assert (found["map_50"], found["count_error"]) == (pytest.approx(1, abs=0.01), 0)
