"""Masks from COCO files: outlines and run lengths mark what pycocotools marks, and what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fovea.errors import InvalidOption, NotFound
from fovea_recipes.training.data.mask_folders import MaskSet, find_masks, read_mask
from fovea_recipes.training.data.splits import held_out
from fovea_recipes.training.data.survey import FileProblem

WIDTH, HEIGHT = 30, 20
KINDS = [{"id": 1, "name": "polyp"}, {"id": 5, "name": "tool"}]
SQUARE = [[5, 5, 15, 5, 15, 12, 5, 12]]

Label = dict[str, Any]


def label(segmentation: object, image: int = 0, kind: int = 1) -> Label:
    return {"id": 77, "image_id": image, "category_id": kind, "bbox": [0, 0, 1, 1], "segmentation": segmentation}


def write(folder: Path, labels: list[Label], names: tuple[str, ...] = ("a.png",), file: str = "coco.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)]
    (folder / file).write_text(json.dumps({"images": images, "annotations": labels, "categories": KINDS}))
    for index, name in enumerate(names):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9 * index, np.uint8)).save(folder / name)
    return folder


def read(folder: Path, names: tuple[str, ...] = ()) -> tuple[MaskSet, list[FileProblem]]:
    return find_masks(folder, folder.parent / "drawn", names)


def marked(folder: Path, names: tuple[str, ...] = ()) -> np.ndarray:
    pairs, problems = read(folder, names)
    assert not problems
    return read_mask(pairs.masks[0]) > 128


def test_outlines_mark_the_pixels_whose_centres_they_hold_of_named_classes_alone(tmp_path):
    folder = write(tmp_path / "set", [label(SQUARE), label([[20, 0, 30, 0, 30, 10]], kind=5)])
    found = marked(folder)
    assert found[5:12, 5:15].all()
    assert found[:, :18].sum() == 70
    assert 45 <= found[:, 18:].sum() <= 55  # the diagonal runs through ten centres: pycocotools takes none of them
    assert marked(write(tmp_path / "more" / "set", [label([*SQUARE, [10, 5, 20, 5, 20, 12, 10, 12]])])).sum() == 15 * 7
    assert marked(folder, ("polyp",)).sum() == 70
    with pytest.raises(InvalidOption, match="no class cyst", check=lambda told: "polyp, tool" in told.hint):
        read(folder, ("cyst",))
    pairs, problems = read(write(tmp_path / "bare" / "set", []))
    assert len(pairs) == 1
    assert not problems
    assert not read_mask(pairs.masks[0]).any()


@pytest.mark.parametrize(
    "counts",
    [[43, 4, 16, 4, 533], "[14`00U`0"],  # both by pycocotools 2.0.11
)
def test_run_lengths_go_down_the_columns(tmp_path, counts):
    found = marked(write(tmp_path / "set", [label({"size": [HEIGHT, WIDTH], "counts": counts})]))
    assert found[3:7, 2:4].all()
    assert found.sum() == 8


@pytest.mark.parametrize(("wrong", "why"), [
    (label([]), "it has no outline"), (label(None), "it has no outline"),
    (label([[1, 2, 3, 4]]), "fewer than three corners"), (label([[1, 2, 3, 4, 5]]), "fewer than three corners"),
    (label({"size": [HEIGHT, WIDTH], "counts": [4, 5]}), "do not fill"),
    (label({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}), "do not fill"),
    (label({"size": [HEIGHT, WIDTH], "counts": "PPPP"}), "end too early"),
    (label({"size": [HEIGHT, WIDTH], "counts": " "}), "no text"),
    (label({"size": [HEIGHT, WIDTH], "counts": "oooooooooo0"}), "no text"),
    (label({"counts": [WIDTH * HEIGHT]}), "size"), (label(SQUARE, kind=9), "classes that it does not list"),
    (label(SQUARE, image=9), "pictures that it does not list"),
])  # fmt: skip
def test_wrong_labels_are_named_and_the_rest_is_used(tmp_path, wrong, why):
    pairs, (problem,) = read(write(tmp_path / "set", [label(SQUARE), wrong]))
    assert problem.path.name == "coco.json"
    assert why in f"{problem.kind} {problem.detail}"
    assert "label 77" in problem.detail
    assert (read_mask(pairs.masks[0]) > 128).sum() == 70


def test_pictures_that_are_missing_broken_or_of_another_size_are_left_out(tmp_path):
    folder = write(tmp_path / "set", [label(SQUARE, image=i) for i in range(4)], ("a.png", "b.png", "c.png", "d.png"))
    (folder / "b.png").unlink()
    (folder / "c.png").write_bytes(b"no picture")
    Image.new("RGB", (WIDTH * 2, HEIGHT)).save(folder / "d.png")
    pairs, problems = read(folder)
    assert [path.name for path in pairs.pictures] == ["a.png"]
    said = {problem.path.name: problem.kind.partition(",")[0].partition(" than ")[0] for problem in problems}
    assert said == {"b.png": "is not there", "c.png": "can't be read", "d.png": "has another size"}


def test_files_of_several_splits_name_their_own_pictures_and_masks_as_pictures_come_first(tmp_path):
    write(tmp_path / "set" / "train", [label(SQUARE)])
    write(tmp_path / "set" / "valid", [])
    (tmp_path / "set" / "notes.json").write_text("[1]")
    pairs, problems = read(tmp_path / "set")
    assert not problems
    assert [int((read_mask(mask) > 128).sum()) for mask in pairs.masks] == [70, 0]
    assert held_out(pairs.pictures, tmp_path / "set").tolist() == [False, True]
    write(tmp_path / "set", [label(SQUARE)], file="first.json")
    write(tmp_path / "set", [label([[16, 5, 20, 5, 20, 12, 16, 12]])], file="second.json")
    assert marked(tmp_path / "set").sum() == 70 + 28
    folder = write(tmp_path / "drawings", [label(SQUARE)], ("images/a.png",))
    (folder / "masks").mkdir()
    Image.new("1", (WIDTH, HEIGHT), 1).save(folder / "masks" / "a.png")
    assert marked(folder).all()
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "bare" / "a.png")
    with pytest.raises(NotFound, match="no pictures with masks", check=lambda told: "COCO" in told.hint):
        read(tmp_path / "bare")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_entries_without_their_parts_and_what_is_no_json_are_named(tmp_path, part):
    folder = write(tmp_path / "set", [label(SQUARE)])
    (folder / "coco.json").write_text(json.dumps(json.loads((folder / "coco.json").read_text()) | {part: [{}]}))
    with pytest.raises(InvalidOption, match=f"Not all {part} of .*coco"):
        read(folder)
    (folder / "coco.json").write_text("{")
    with pytest.raises(InvalidOption, match=r"coco\.json is no JSON"):
        read(folder)
