"""Verbs that send many pictures: restore, detect, classify, and deeds at once."""

import asyncio
import json

import pytest

from fovea.api.restore import ImageSimilarity
from fovea.cli.batch_images import run_concurrently, write_files
from fovea.cli.commands import restore
from fovea.cli.output import Screen
from fovea.errors import DeadlineExceeded, TooLarge
from services.gateway.tests.stub_service import AFTER, Seeing, plain, restored

SERVICE = Seeing


@pytest.fixture
def here(folder, monkeypatch):
    """The current folder, with a picture `a.jpg`."""
    monkeypatch.chdir(folder)
    return folder


def test_a_picture_is_sent_with_the_options_and_written_with_its_facts(fovea, stage, here):
    told = fovea("restore", "a.jpg", "--variant", "paper", "-o", "out")[:2]
    assert told == (0, "a.jpg: 320×240, paper, changed by 25.0 % of white\n")
    assert stage.stub.seen[-1] == {"variant": "paper"}
    assert (here / "out/a.restored.png").read_bytes() == plain(AFTER)
    assert json.loads((here / "out/a.json").read_text())["estimate"]["tiles"] == 6


def test_one_failure_is_counted_and_what_takes_too_long_is_a_job(fovea, stage, here):
    stage.stub.fails = [TooLarge("The picture is too large.")]
    _, _, err = fovea("restore", "a.jpg", "-o", "out")
    assert ("a.jpg: The picture is too large." in err, "1 of 1 failed." in err) == (True, True)
    assert not (here / "out").exists()
    stage.stub.fails = [DeadlineExceeded("too long")]
    code, _, err = fovea("restore", "a.jpg", "-o", "out")
    assert (code, "Continues as job job-1." in err) == (0, True)
    assert (here / "out/a.restored.png").exists()


def test_a_reference_goes_along_and_all_layers_that_came_are_written_with_cost_and_likeness(here):
    sent = restore._RestoreBatch(Screen(), {"model": None}, reference=here / "a.jpg").build_call(b"x")
    assert set(sent.files) == {"image", "reference"}
    files = write_files(here, "a", restore.list_files(restored(reflection=b"r", comparison=b"c")))
    assert {file.rpartition("/")[2] for file in files} == {
        "a.restored.png", "a.reflection.png", "a.comparison.jpg", "a.json",
    }  # fmt: skip
    assert restore.summarise(restored(restored=None)) == "320×240 in 6 tiles would take about 2.5 s and 1,234 MiB"
    before, after = ImageSimilarity(psnr=20, ssim=0.8), ImageSimilarity(psnr=None, ssim=1)
    assert restore.summarise(restored(input_likeness=before, likeness=after)).endswith("20.0 dB → equal")


@pytest.mark.parametrize(
    ("verb", "options", "told", "sent"),
    [
        ("classify", [], "boot 80.0%, dress 40.0%, hat 20.0%", {"model": "first"}),
        ("classify", ["--tile", "96"], "1 × boot, 1 × dress, 1 × hat, 1 × shoe", {"tile": "96", "model": "first"}),
        ("classify", ["--model", "second"], "shoe 60.0%, boot 30.0%, dress 15.0%", {"model": "second"}),
        ("detect", ["--confidence", "0.4"], "2 × crack", {"confidence": "0.4", "model": "road"}),
    ],
)
def test_a_picture_is_told_in_a_line_and_options_reach_the_model(fovea, stage, here, verb, options, told, sent):
    assert fovea(verb, "a.jpg", *options)[:2] == (0, f"a.jpg: {told}\n")
    assert stage.stub.seen[-1] == sent


@pytest.mark.parametrize(
    ("verb", "also", "files"),
    [
        ("classify", [], {"a.classes.jpg": "image/jpeg"}),
        (
            "detect",
            ["csv", "crops"],
            {"a.boxes.jpg": "image/jpeg", "a.csv": "text/csv", "a.crops.zip": "application/zip"},
        ),
    ],
)
def test_answer_and_further_forms_are_written_where_asked(fovea, here, verb, also, files):
    _, out, _ = fovea(verb, "a.jpg", "-o", "out", "--json", *(word for form in also for word in ("--also", form)))
    answer = json.loads((here / "out/a.json").read_text())
    assert (answer.get("results") or answer["detections"])[0]["label"] in {"boot", "crack"}
    written = {path.name: path.read_text() for path in (here / "out").iterdir() if path.suffix != ".json"}
    assert written == {name: f"a file of {kind}" for name, kind in files.items()}
    assert json.loads(out)["file"] == "a.jpg"


def test_detections_of_many_pictures_some_of_one_name_are_one_coco_file(fovea, here):
    for name in ("one/a.jpg", "two/a.jpg", "two/b.jpg"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes((here / "a.jpg").read_bytes())
    fovea("detect", "*/*.jpg", "-o", "out", "--also", "coco", "--confidence", "0.4")
    held = json.loads((here / "out/coco.json").read_text())
    assert [image["file_name"] for image in held["images"]] == ["one/a.jpg", "two/a.jpg", "b.jpg"]
    assert held["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 100, 40], "area": 4000, "iscrowd": 0,
        "segmentation": [], "score": 0.9,
    }  # fmt: skip
    assert [category["name"] for category in held["categories"]] == ["crack"]
    assert [row["image_id"] for row in held["annotations"]] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("words", [["--also", "pdf", "-o", "out"], ["--also", "csv"]])
def test_a_form_that_there_is_not_or_no_folder_is_refused(fovea, stage, here, words):
    asked = len(stage.stub.seen)
    assert (fovea("detect", "a.jpg", *words)[0], len(stage.stub.seen)) == (2, asked)


def test_deeds_never_run_more_than_so_many_at_a_time():
    running, most = 0, 0

    async def deed():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    asyncio.run(run_concurrently([deed] * 9, 3, Screen(as_json=True), "doing"))
    assert (running, most) == (0, 3)
