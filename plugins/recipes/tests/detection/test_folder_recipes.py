"""Detectors and classifiers on folders of one's own: a few steps end in weights, and what is wrong is said before."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.errors import Conflict, InvalidOption
from fovea_recipes.detection.class_recipe import ClassRecipe, EfficientNetLite0Recipe
from fovea_recipes.detection.hieraedgenet_cells import HieraEdgeNetCells
from fovea_recipes.detection.partial_networks import FasterNetRecipe, PATNetRecipe
from fovea_recipes.detection.yolo9tr_roads import Yolo9trRoads
from fovea_recipes.training.publish import publish
from fovea_recipes.training.recalibrate import recalibrate
from fovea_recipes.training.recipe import MultiScale, Schedule
from fovea_recipes.training.trainer import fit
from shared.registry.weights import Manifest, read_weights

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
        row = f"0 {(x + 20) / 128} {(y + 15) / 96} {40 / 128} {30 / 96}"
        (folder / "labels" / f"{index:02}.txt").write_text(row)
    return folder


def colours(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for name, base in (("blue", (40, 40, 200)), ("red", (200, 40, 40))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(base) + rng.normal(0, 20, (70, 60, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


@pytest.mark.parametrize("kind", [HieraEdgeNetCells, pytest.param(Yolo9trRoads, marks=pytest.mark.release)])
def test_a_folder_of_boxes_becomes_a_detector(kind, tmp_path):
    made = kind(
        data=squares(tmp_path / "data", 14), side=64, scale=MultiScale(side=64, rates=(1.0,)), schedule=SHORT,
        choose=2, start=None,
    )  # fmt: skip
    manifest = publish(made, fit(made, tmp_path / "run"), tmp_path / "out")
    assert {"map50", "map50_95", "ap50_square", "count_error_square"} <= manifest.metrics.keys()
    assert manifest.data["names"] == "square"
    assert read_weights(tmp_path / "out" / f"{made.weights}.safetensors").manifest.recipe["side"] == 64
    survey = made.survey()
    assert survey is not None
    assert survey.classes == {"square": 14}


def test_boxes_of_a_batch_lie_on_their_squares(tmp_path):
    made = HieraEdgeNetCells(
        data=squares(tmp_path / "data", 14), side=96, scale=MultiScale(side=96, rates=(1.0,)), schedule=SHORT, choose=2
    )
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


def test_a_rare_class_is_drawn_as_often_as_any_other_and_is_in_view(tmp_path):
    data = squares(tmp_path / "data", 24)
    (data / "classes.txt").write_text("square\nrare\n")
    for index in (3, 17):
        label = data / "labels" / f"{index:02}.txt"
        label.write_text("1" + label.read_text()[1:])
    made = HieraEdgeNetCells(
        data=data, side=96, scale=MultiScale(side=96, rates=(1.0,)),
        schedule=SHORT.model_copy(update={"batch": 64}), choose=1, balance=1.0, mosaic=0.0,
    )  # fmt: skip
    made.prepare(tmp_path)
    (batch,) = made.batches(0, np.random.default_rng(0))
    assert 0.3 < float((batch["targets"][:, 1] == 1).float().mean()) < 0.7
    assert len(batch["targets"][:, 0].unique()) > 55


@dataclass(frozen=True)
class Trained:
    """A recipe that was fitted and published, and where its weights are."""

    recipe: ClassRecipe
    data: Path
    file: Path
    manifest: Manifest


def _train(recipe: ClassRecipe, data: Path, home: Path) -> Trained:
    manifest = publish(recipe, fit(recipe, home / "run"), home / "out")
    return Trained(recipe, data, home / "out" / f"{recipe.weights}.safetensors", manifest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours") / "data", 10)


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    recipe = EfficientNetLite0Recipe(data=folder, side=64, schedule=SHORT)
    return _train(recipe, folder, tmp_path_factory.mktemp("teacher"))


def _taught(kind: type[PATNetRecipe | FasterNetRecipe], folder: Path, home: Path) -> Trained:
    teacher = EfficientNetLite0Recipe(data=folder, side=64, schedule=SHORT)
    return _train(kind(data=folder, side=64, schedule=SHORT, teacher=teacher), folder, home)


@pytest.fixture(scope="module")
def patnet(folder, tmp_path_factory):
    return _taught(PATNetRecipe, folder, tmp_path_factory.mktemp("patnet"))


def _check_classifier(trained: Trained) -> None:
    assert {"top_1", "teacher_top_1", "recall.blue", "recall.red"} <= trained.manifest.metrics.keys()
    assert trained.manifest.data["names"] == "blue,red"


def test_a_folder_of_classes_becomes_a_classifier(patnet):
    _check_classifier(patnet)


@pytest.mark.release
def test_a_folder_of_classes_becomes_a_fasternet(folder, tmp_path):
    _check_classifier(_taught(FasterNetRecipe, folder, tmp_path))


def test_a_classifier_starts_from_a_file_and_the_manifest_keeps_only_its_name(teacher, tmp_path):
    again = teacher.recipe.model_copy(update={"start": str(teacher.file)})
    again.prepare(tmp_path)
    held = {key: torch.from_numpy(array) for key, array in read_weights(teacher.file).arrays.items()}
    built = again.network().state_dict()
    assert held.keys() == built.keys()
    assert all(torch.equal(built[key], tensor) for key, tensor in held.items() if tensor.is_floating_point())
    assert again.model_dump(mode="json")["start"] == "efficientnet-lite0"


def test_warnings_are_learnt_anew_without_touching_the_network(patnet, tmp_path):
    other = squares(tmp_path / "squares", 6)
    file = Path(shutil.copytree(patnet.file.parent, tmp_path / "out")) / patnet.file.name
    arrays = read_weights(file).arrays
    after = recalibrate(file, patnet.data, foreign=(other,))
    again = read_weights(file)
    assert all(np.array_equal(arrays[key], array) for key, array in again.arrays.items())
    assert {"auroc_squares", "warned_squares", "auroc_unlearnt_squares"} <= after.metrics.keys()
    assert (after.metrics["top_1"], after.recipe["foreign"]) == (patnet.manifest.metrics["top_1"], ["squares"])
    assert "foreign" not in patnet.manifest.recipe
    assert "familiar.directions" in again.familiar
    with pytest.raises(Conflict, match="is not the data"):
        recalibrate(file, colours(tmp_path / "more", 11))


def test_a_start_of_which_no_layer_fits_is_refused(teacher):
    made = PATNetRecipe(data=teacher.data, side=64, start=str(teacher.file))
    made.gather()
    with pytest.raises(InvalidOption, match="No layer of efficientnet-lite0 has the name and shape of one of patnet"):
        made.network()


def test_one_class_is_refused(tmp_path):
    folder = colours(tmp_path / "data", 4)
    for path in (folder / "red").iterdir():
        path.unlink()
    (folder / "red").rmdir()
    with pytest.raises(InvalidOption, match="1 classes"):
        PATNetRecipe(data=folder).prepare(tmp_path)
