"""Data sets: readers, augmentation, masks of COCO, folders of ImageNet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from fovea.errors import InvalidOption, NotFound
from fovea_recipes.training.data.augment import Augment, warp_boxes, warp_picture
from fovea_recipes.training.data.box_sets import check_boxes, find_boxes, mask_boxes
from fovea_recipes.training.data.class_folders import find_classes
from fovea_recipes.training.data.mask_folders import find_masks, read_mask
from fovea_recipes.training.data.splits import group_of, held_out
from fovea_recipes.training.data.survey import Survey, near_copies, picture_size, read_picture, unreadable
from fovea_recipes.training.imagenet import load_imagenet
from shared.vision.backbones.efficientnet_lite import EfficientNetLite0

BOXES = {"a": [("cat", 10, 20, 50, 60)], "b": [("dog", 0, 0, 30, 40), ("cat", 60, 10, 90, 70)]}


NAME, MAC_NAME = "S\xfcd", "Su\u0308d"  # one name, as most systems and as archives of macOS write it


def noise(path: Path, seed: int, size: tuple[int, int] = (100, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def pictures(tmp_path):
    for seed, name in enumerate(BOXES):
        noise(tmp_path / f"{name}.png", seed)
    return tmp_path


def as_voc(folder: Path) -> None:
    for stem, boxes in BOXES.items():
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for name, x1, y1, x2, y2 in boxes
        )
        (folder / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")


def as_coco(folder: Path, kind: Callable[[int], object] = int, images: Any = (), notes: Any = ()) -> None:
    """COCO's file, with more images and annotations; `kind` is the type of its ids."""
    kinds = [{"id": kind(7), "name": "cat"}, {"id": 10, "name": "dog"}]
    held = [{"id": kind(index), "file_name": f"{stem}.png"} for index, stem in enumerate(BOXES)]
    boxes = [
        {"image_id": index, "category_id": {"cat": 7, "dog": 10}[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for index, boxes in enumerate(BOXES.values())
        for name, x1, y1, x2, y2 in boxes
    ]
    told = {"images": [*held, *images], "annotations": [*boxes, *notes], "categories": kinds}
    (folder / "instances.json").write_text(json.dumps(told))


def as_yolo(folder: Path) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    for stem, boxes in BOXES.items():
        rows = [
            f"{['cat', 'dog'].index(name)} {(x1 + x2) / 200} {(y1 + y2) / 160} {(x2 - x1) / 100} {(y2 - y1) / 80}"
            for name, x1, y1, x2, y2 in boxes
        ]
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(rows))


@pytest.mark.parametrize(("write", "name"), [(as_voc, "a.xml"), (as_coco, "instances.json"), (as_yolo, "labels/a.txt")])
def test_every_format_says_the_same_without_hidden_files_and_another_encoding_is_named(pictures, write, name):
    write(pictures)
    file = pictures / name
    for hidden in (pictures / "._a.png", file.with_name(f"._{file.name}")):  # by the Finder of macOS
        hidden.write_bytes(b"\0\5\x16\7\xb0")
    found, problems, _ = check_boxes(find_boxes(pictures))
    assert (found.names, problems, [path.stem for path in found.pictures]) == (("cat", "dog"), [], ["a", "b"])
    assert np.allclose(found.rows[0], [[0, 10, 20, 50, 60]], atol=1e-4)
    assert np.allclose(found.rows[1], [[1, 0, 0, 30, 40], [0, 60, 10, 90, 70]], atol=1e-4)
    assert found.counts == {"cat": 2, "dog": 1}
    file = file.rename(file.with_suffix(file.suffix.upper()))  # of a camera, or Windows
    (pictures / "a.png.aux.xml").write_text("<PAMDataset/>")  # by QGIS, which showed the picture
    assert find_boxes(pictures).counts == found.counts
    file.write_bytes("Schlaglöcher".encode("utf-16"))
    with pytest.raises(InvalidOption, match=file.name):
        find_boxes(pictures)


def test_pictures_have_the_size_in_which_they_are_read(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for suffix in ("jpg", "png", "tif", "webp"):
        Image.new("RGB", (40, 20)).save(file := tmp_path / f"turned.{suffix}", exif=exif)
        assert (picture_size(file), read_picture(file).shape[:2]) == ((40, 20), (40, 20)), suffix


@pytest.mark.parametrize("write", [as_voc, as_coco, as_yolo])
def test_pictures_of_one_name_in_two_folders_keep_their_own_labels(tmp_path, write, monkeypatch):
    for split, name in (("train", "cat"), ("valid", "dog")):
        home = tmp_path / split
        noise(home / "images" / "a.png", len(split))
        (home / "labels").mkdir()
        monkeypatch.setitem(globals(), "BOXES", {"a": [(name, 10, 20, 50, 60)]})
        write(made := tmp_path / split / ("labels" if write is as_voc else ""))
        (made / "data.yaml").unlink(missing_ok=True)
    (tmp_path / "data.yaml").write_text("train: ../x\n\nnames:  # two\n  0: cat\n  1: 'dog'  # pets\nnc: 2\n")
    found = find_boxes(tmp_path)
    assert (found.names, [path.parts[-3] for path in found.pictures]) == (("cat", "dog"), ["train", "valid"])
    assert [rows[:, 0].tolist() for rows in found.rows] == [[0], [1]]


@pytest.mark.parametrize("text", [
    'names: ["cat, wild", dog]', "names:\n- cat, wild\n- dog\n", "nc: 2\nnames: {0: 'cat, wild', 1: dog}\n",
    "names:\n  0: cat, wild\n  1: dog\npath: x",
])  # fmt: skip
def test_classes_of_yolo_are_named_in_every_way(pictures, text):
    as_yolo(pictures)
    (pictures / "data.yaml").write_text(text)
    assert find_boxes(pictures).names == ("cat, wild", "dog")
    (pictures / "labels" / "classes.txt").write_text("\ufeffkitten\r\npuppy\r\n", "utf8")
    assert find_boxes(pictures).names == ("kitten", "puppy")


def test_outlines_of_yolo_are_boxed_and_other_lines_are_told_by_their_place(pictures):
    as_yolo(pictures)
    label = pictures / "labels" / "a.txt"
    label.write_text("0 0.1 0.25 0.5 0.3 0.3 0.75\n\n1 0.5 0.5 0.2 0.4 0.87\n")
    assert np.allclose(find_boxes(pictures).rows[0], [[0, 10, 20, 50, 60], [1, 40, 24, 60, 56]], atol=1e-4)
    for line in ("1 0.5 0.5", "99999999 0.5 0.5 0.2 0.4"):  # so many names would fill the memory
        label.write_text(f"0 0.5 0.5 0.2 0.4\n{line}\n")
        with pytest.raises(InvalidOption, match=r"Line 2 of .*a\.txt"):
            find_boxes(pictures)


def test_mistakes_in_coco_files_are_named_and_the_rest_is_used(pictures):
    notes = [
        {"id": 7, "image_id": 99, "category_id": 7, "bbox": [0, 0, 5, 5]},
        {"id": 8, "image_id": 0, "category_id": 99, "bbox": [0, 0, 5, 5]},
        {"id": 9, "image_id": 0, "category_id": 7},
    ]
    as_coco(pictures, images=[{"id": 5, "file_name": "gone.png"}], notes=notes)
    (pictures / "instances.json").write_text("\ufeff" + (pictures / "instances.json").read_text(), "utf8")
    (pictures / "captions.json").write_text("[]")
    found, problems, _ = check_boxes(find_boxes(pictures, names=["dog", "cat"]))
    assert (found.names, found.counts) == (("dog", "cat"), {"dog": 1, "cat": 2})
    assert sorted(each.detail or each.path.name for each in problems) == ["gone.png", "label 7", "label 8", "label 9"]


@pytest.mark.parametrize("kind", [int, str, float])
def test_ids_match_however_they_are_written_crowds_are_no_objects_and_names_of_windows_are_found(pictures, kind):
    as_coco(pictures, kind, notes=[{"id": 4, "image_id": 0, "category_id": 7, "bbox": [0, 0, 80, 70], "iscrowd": 1}])
    file = pictures / "instances.json"
    (pictures / "a.png").rename(pictures / f"{MAC_NAME}.png")
    file.write_text(file.read_text().replace('"a.png"', rf'"images\\{NAME}.png", "width": null'))
    found = find_boxes(pictures)
    assert found.counts == {"cat": 2, "dog": 1}
    assert [(each.kind.split(",")[0], each.detail) for each in found.problems] == [("has labels of crowds", "label 4")]
    (pictures / "person_keypoints.json").write_text(file.read_text())  # COCO has the boxes of its persons twice
    assert find_boxes(pictures).counts == found.counts


def test_no_labels_classes_beyond_the_names_and_xml_that_reads_other_files_are_refused(pictures):
    with pytest.raises(NotFound, match="no boxes", check=lambda told: "Pascal VOC" in told.hint):
        find_boxes(pictures)
    as_yolo(pictures)
    (pictures / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(InvalidOption, match="class 1"):
        find_boxes(pictures)
    entity = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>'
    for text, told in ((entity, "Entit"), ("<annotation><object/></annotation>", r"a\.xml has an object without")):
        (pictures / "a.xml").write_text(text)
        with pytest.raises(Exception, match=told):
            find_boxes(pictures)


def test_boxes_outside_and_broken_files_are_named(pictures):
    as_voc(pictures)
    (pictures / "a.xml").write_text((pictures / "a.xml").read_text().replace("<xmax>50", "<xmax>500"))
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    found, problems, sizes = check_boxes(find_boxes(pictures))
    assert ([path.stem for path in found.pictures], found.rows[0][0].tolist()) == (["a"], [0, 10, 20, 100, 60])
    assert sizes == [(80, 100)]
    assert {problem.path.stem: problem.kind.split()[0] for problem in problems} == {"b": "can't", "a": "has"}


def test_parts_of_masks_join_when_they_are_near_and_hold_numbers_of_the_named_classes(tmp_path):
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 10:20] = 1
    mask[10:20, 26:30] = 1
    mask[60:70, 60:70] = 2
    assert mask_boxes(mask, grow=2).tolist() == [[0, 8, 8, 22, 22], [0, 24, 8, 32, 22], [1, 58, 58, 72, 72]]
    assert len(mask_boxes(mask, grow=4)) == 2
    noise(tmp_path / "a.jpg", 1)
    for saved, names, counts in ((mask, ["a", "b"], [2, 1]), (np.where(mask, 255, mask), ["a"], [3])):
        Image.fromarray(saved).save(tmp_path / "a.png")
        assert [*find_boxes(tmp_path, names, grow=2).counts.values()] == counts
    with pytest.raises(InvalidOption, match=r"a\.png holds the number 255, and only 2 classes"):
        find_boxes(tmp_path, ["a", "b"])


@pytest.mark.parametrize(("mode", "values"), [
    ("1", (0, 1)), ("L", (0, 255)), ("L", (0, 1)), ("L", (0, 100)), ("P", (0, 3)), ("I;16", (0, 65535)),
    ("I;16", (0, 1)), ("RGB", ((0, 0, 0), (250, 50, 83))), ("RGB", ((0, 0, 0), (0, 0, 128))),
    ("RGBA", ((255, 255, 255, 0), (255, 255, 255, 255))), ("LA", ((0, 255), (255, 255))),
])  # fmt: skip
def test_masks_of_every_depth_mark_the_same(tmp_path, mode, values):
    marked = np.zeros((20, 30), bool)
    marked[5:10, 5:20] = True
    array = np.where(marked if np.ndim(values) == 1 else marked[..., None], values[1], values[0])
    if mode in "LP" and values[1] in {1, 3}:
        array[:4] = 255  # next to numbers of classes: what nobody labelled
    if mode == "1":
        mask = Image.fromarray(marked)
    elif mode == "P":
        mask = Image.fromarray(array.astype(np.uint8), mode="L").convert("P")
        mask.putdata(array.ravel().tolist())
    else:
        mask = Image.fromarray(array.astype(np.uint16 if mode == "I;16" else np.uint8))
    mask.save(tmp_path / "mask.png")
    assert ((read_mask(tmp_path / "mask.png") > 128) == marked).all()


def test_pictures_find_their_masks_and_groups_are_never_split(tmp_path):
    for split in ("train", "validation"):
        noise(tmp_path / split / "images" / "x.jpg", 1)
        noise(tmp_path / split / "masks" / "x.png", 2)
    noise(tmp_path / "train" / "images" / f"{MAC_NAME}.jpg", 3)
    noise(tmp_path / "train" / "masks" / f"{NAME}.png", 3)
    for left in ("images/lonely.jfif", "masks/alone.png", "images/phone.heic"):
        (tmp_path / "train" / left).write_bytes(b"x")
    pairs, problems = find_masks(tmp_path)
    assert (len(pairs), [each.path.name for each in problems]) == (3, ["lonely.jfif", "alone.png", "phone.heic"])
    assert held_out(pairs.pictures, tmp_path).tolist() == [False, False, True]
    paths = [tmp_path / f"{index}_road{index % 6}_x.png" for index in range(60)]
    out = held_out(paths, tmp_path, group_by=r"_(road\d)_", share=0.3)
    roads = {side: {group_of(path, r"_(road\d)_") for path in np.array(paths)[out == side]} for side in (True, False)}
    assert not roads[True] & roads[False]
    assert 0.15 < out.mean() < 0.5


def test_lists_patterns_and_folders_say_what_is_held_out_or_are_refused(tmp_path):
    paths = [tmp_path / split / "a.png" for split in ("train", "val", "test")]
    assert held_out(paths, tmp_path).tolist() == [False, True, True]
    coco = [tmp_path / "images" / split / "a.jpg" for split in ("train2017", "val2017", "Train2014", "test2015")]
    assert held_out(coco, tmp_path).tolist() == [False, True, False, True]
    for pattern, told in (("nowhere", "Nothing is left to hold out"), ("(", "not a pattern")):
        with pytest.raises(InvalidOption, match=told):
            held_out([tmp_path / "a.png", tmp_path / "b.png"], tmp_path, pattern=pattern)
    paths = [tmp_path / "images" / f"cam{cam}" / f"road_1.{place}m.png" for cam in range(3) for place in range(2)]
    for lines in ("cam1/road_1.0m", "/other/place/images/cam1/road_1.0m.png", r"images\cam1\road_1.0m.jpg"):
        (tmp_path / "val.txt").write_text(f"{lines}\n\nroad_9.png\n")
        assert np.flatnonzero(held_out(paths, tmp_path)).tolist() == [2], lines
    (tmp_path / "val.txt").write_text("road_1.1m\n")
    assert np.flatnonzero(held_out(paths, tmp_path)).tolist() == [1, 3, 5]


def test_near_copies_across_a_split_are_found(tmp_path):
    for seed in range(8):
        noise(tmp_path / f"{seed}.png", seed)
    with Image.open(tmp_path / "3.png") as picture:
        picture.resize((90, 72)).save(tmp_path / "copy.jpg", quality=70)
    train = [tmp_path / f"{seed}.png" for seed in range(6)]
    found = near_copies(train, [tmp_path / "6.png", tmp_path / "7.png", tmp_path / "copy.jpg"])
    assert found == [(tmp_path / "3.png", tmp_path / "copy.jpg")]
    *_, line = Survey(6, 3, copies=found).lines()
    assert ("3.png and copy.jpg" in line, "--group-by" in line) == (True, True)


def test_classes_are_folders_also_of_splits_which_may_be_capital_and_train_may_be_a_class(tmp_path):
    for index, name in enumerate(("hat", "shoe")):
        for seed in range(3):
            noise(tmp_path / name / f"{seed}.jpg", 10 * index + seed)
    (tmp_path / "hat" / "bad.jpg").write_bytes(b"no picture")
    noise(tmp_path / ".cache" / "0.jpg", 9)
    (tmp_path / "empty").mkdir()
    noise(tmp_path / "loose.jpg", 9)
    (tmp_path / "hat" / "phone.heic").write_bytes(b"x")
    found, problems = find_classes(tmp_path)
    assert (found.names, found.counts) == (("hat", "shoe"), {"hat": 3, "shoe": 3})
    assert [each.path.name for each in problems] == ["bad.jpg", "empty", "loose.jpg", "phone.heic"]
    assert unreadable(found.pictures) == []
    for side in ("Train", "Test"):
        for kind in ("car", "train"):
            noise(tmp_path / "split" / side / kind / "0.png", len(side + kind))
            noise(tmp_path / "vehicles" / kind / f"{side}.png", len(side + kind))
    found, _ = find_classes(tmp_path / "split")
    assert (found.counts, found.pictures[0].parts[-3]) == ({"car": 2, "train": 2}, "Train")
    assert held_out(found.pictures, tmp_path / "split").tolist() == [False, False, True, True]
    assert find_classes(tmp_path / "vehicles")[0].counts == {"car": 2, "train": 2}
    tickets = [tmp_path / side / kind / "0.png" for side in ("train", "val") for kind in ("invalid", "valid")]
    assert held_out(tickets, tmp_path).tolist() == [False, False, True, True]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_the_picture(seed):
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[40:80, 60:100] = 255
    rng = np.random.default_rng(seed)
    warp = Augment(quarters=True, zoom=(0.8, 1.0), shift=0.05).warp(rng, (120, 160), (128, 128), keep_aspect=True)
    rows, columns = np.nonzero(warp_picture(pixels, warp, (128, 128), grey=0)[..., 0] > 128)
    (box,) = warp_boxes(np.array([[60, 40, 100, 80]], np.float32), warp)
    assert np.allclose(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=2)


def test_a_mask_follows_the_picture_and_the_same_draw_gives_the_same():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 255
    warp = Augment().warp(np.random.default_rng(3), (64, 64), (96, 96))
    pixels = warp_picture(np.repeat(mask[..., None], 3, axis=2), warp, (96, 96))
    assert np.abs(pixels[..., 0].astype(int) - warp_picture(mask, warp, (96, 96))).max() <= 1
    quiet = ("flip_x", "flip_y", "turn", "stretch", "shift", "brightness", "contrast", "gamma", "saturation", "hue")
    long = np.full((2, 70_000, 3), 200, np.uint8)  # of a line camera; OpenCV neither warps nor compresses it
    assert warp_picture(long, np.array([[64 / 70_000, 0, 0], [0, 32, 0]]), (64, 64)).min() == 200
    assert Augment(compress=1).recolour(long, np.random.default_rng(0)).shape == long.shape
    still = Augment(**dict.fromkeys((*quiet, "blur", "noise", "compress"), 0), zoom=(1, 1))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    assert np.allclose(still.warp(rng, (40, 50), (40, 50)), [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert np.array_equal(still.recolour(pixels, rng), pixels)
    first, second = (Augment().recolour(pixels, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(name: str, height: int, width: int) -> torch.Tensor:
    x = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True)


def normalised(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def test_it_names_photographs_and_another_normalisation_gives_the_same_features():
    plain, adapted, named = EfficientNetLite0().eval(), EfficientNetLite0().eval(), EfficientNetLite0(1000).eval()
    load_imagenet(named)
    for name, classes in (("chelsea", {281, 282, 285}), ("coffee", {504, 967, 968})):
        assert int(named(normalised(picture(name, 224, 224), (0.5,) * 3, (0.5,) * 3)).argmax()) in classes
    load_imagenet(plain)
    load_imagenet(adapted, IMAGENET_MEAN, IMAGENET_STD)
    x = picture("chelsea", 256, 320)
    first = plain.conv_stem(normalised(x, (0.5,) * 3, (0.5,) * 3))
    second = adapted.conv_stem(normalised(x, IMAGENET_MEAN, IMAGENET_STD))
    inner = (..., slice(1, -1), slice(1, -1))
    assert np.allclose(plain.bn1(first)[inner], adapted.bn1(second)[inner], atol=1e-4)
