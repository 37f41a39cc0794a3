"""The ML backend of Label Studio: its protocol, its regions against the masks that they are of, its training sets."""

import asyncio
import base64
import io
from typing import Any

import cv2
import httpx2
import numpy as np
import pytest
from PIL import Image

from fovea.api.boxes import Detection, DetectOut
from fovea.api.classes import Candidate, Classified, ClassifyOut
from fovea.api.image import Times
from fovea.errors import InvalidOption, Malformed, NotReady, PermissionDenied, TooLarge, UnsupportedMedia
from fovea_labelstudio.brush_codec import decode_brush, encode_brush
from fovea_labelstudio.cli import check_access
from fovea_labelstudio.label_config import find_control
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.regions import boxes_to_regions, choices_to_regions
from fovea_labelstudio.settings import LabelStudioSettings
from fovea_labelstudio.training_run import TrainingPlan, TrainingRuns
from fovea_labelstudio.training_set import TrainingSet, pick_annotation
from fovea_recipes.training.data.box_sets import find_boxes
from fovea_recipes.training.data.class_folders import find_classes
from fovea_recipes.training.data.mask_folders import find_masks, read_mask
from plugins.labelstudio.tests.stand import BRUSH, FRAME, POLYGON, backend, files_of_label_studio, gateway
from shared.vision.draw import encode
from tests.command import command_runner
from tests.harness.models import ok
from tests.harness.waiting import wait_until

BOXES = """<View><Image name="img" value="$photo"/><RectangleLabels name="box" toName="img">
<View><Label value="hole" alias="Pothole" predicted_values="D40"/></View>
<View><Style>a</Style><View><Label value="Crack" predicted_values="D00, D10"/></View></View>
</RectangleLabels></View>"""
CHOICES = """<View><Image name="i" value="$image"/><Choices name="c" toName="i">
<Choice value="sound"/><Choice value="crack"/></Choices></View>"""

DEEP = b"[" * 200_000

LABEL_STUDIOS_BYTES = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 255, 254, 31, 0, 143, 255, 11, 128, 0]
"""A mask of 5 × 7 pixels as the converter of label-studio-sdk 2.1.2 writes it."""


@pytest.fixture(scope="module")
def fovea(tmp_path_factory):
    with gateway(tmp_path_factory.mktemp("fovea")) as url:
        yield url


@pytest.fixture
def client(fovea):
    with backend(fovea, files_of_label_studio({})) as made:
        yield made


def task(number: int = 1, **data: str) -> dict[str, Any]:
    return {"id": number, "data": data or {"image": "/data/upload/1/frame.jpg"}}


def truth(url: str) -> np.ndarray:
    answer = httpx2.post(f"{url}/v1/segment", files={"image": FRAME.read_bytes()}, timeout=60).json()
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"])))) > 0


def test_the_brush_reads_what_label_studio_writes_and_any_mask_comes_back():
    drawn = np.zeros((5, 7), bool)
    drawn[1:3, 2:6] = drawn[4, 0] = True
    assert (decode_brush(LABEL_STUDIOS_BYTES, 5, 7) == drawn).all()
    rng = np.random.default_rng(0)
    for mask in (drawn, rng.random((31, 17)) > 0.5, np.ones((300, 200), bool), np.zeros((1, 1), bool)):
        assert (decode_brush(encode_brush(mask), *mask.shape) == mask).all()
    for broken in ([1, 2], LABEL_STUDIOS_BYTES[:9], [*LABEL_STUDIOS_BYTES[:4], 999], "text", 10**12):
        with pytest.raises(Malformed):
            decode_brush(broken, 5, 7)  # type: ignore[arg-type]
    with pytest.raises(Malformed, match="6 × 5"):
        decode_brush(LABEL_STUDIOS_BYTES, 5, 6)


def test_a_mask_becomes_a_brush_exactly_and_outlines_within_a_pixel(fovea):
    mask = truth(fovea)
    with backend(fovea, files_of_label_studio({"/data/upload/1/frame.jpg": FRAME.read_bytes()})) as client:
        body = {"tasks": [task()], "project": "1.17", "label_config": BRUSH, "params": {}}
        (prediction,) = ok(client.post("/predict", json=body))["results"]
        (brush,) = prediction["result"]
        assert (brush["type"], brush["from_name"], brush["to_name"]) == ("brushlabels", "tag", "img")
        assert brush["value"]["brushlabels"] == ["Polyp"]
        assert (decode_brush(brush["value"]["rle"], *mask.shape) == mask).all()
        assert 0.5 < prediction["score"] <= 1
        assert prediction["model_version"] == client.post("/setup", json={"schema": BRUSH}).json()["model_version"]
        assert client.get("/versions").json()["versions"] == [prediction["model_version"]]
        outlines = client.post("/predict", json={**body, "label_config": POLYGON}).json()["results"][0]["result"]
        redrawn = np.zeros(mask.shape, np.uint8)
        for region in outlines:
            points = np.asarray(region["value"]["points"]) / 100 * (mask.shape[1], mask.shape[0])
            cv2.fillPoly(redrawn, [np.rint(points).astype(np.int32)], 1)
            assert len(points) < 100
        assert (redrawn & mask).sum() / (redrawn | mask).sum() > 0.97


def test_a_task_that_fails_gets_no_prediction_and_the_others_get_theirs(fovea):
    studio = files_of_label_studio({"/data/upload/1/frame.jpg": FRAME.read_bytes(), "/data/broken.jpg": b"no picture"})
    with backend(fovea, studio) as client:
        tasks = [
            task(1, image="/data/broken.jpg"), task(2), task(3, image="s3://bucket/a.jpg"),
            task(4, image="http://127.0.0.1:1/a.jpg"), task(5, text="nothing"),
        ]  # fmt: skip
        found = client.post("/predict", json={"tasks": tasks, "label_config": BRUSH}).json()["results"]
        assert [bool(each) for each in found] == [False, True, False, False, False]
        alone = client.post("/predict", json={"tasks": tasks[2:3], "label_config": BRUSH})
        assert (alone.status_code, alone.json()["code"]) == (422, "invalid_option")
        assert "nobody here can read" in alone.json()["detail"]


@pytest.mark.parametrize(("path", "body", "status", "says"), [
    ("/setup", {"schema": BOXES}, 422, "BrushLabels or PolygonLabels"), ("/setup", {"schema": "<View>"}, 400, "XML"),
    ("/setup", {"schema": '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'}, 400, "XML"),
    ("/predict", {"tasks": "no", "label_config": BRUSH}, 422, "tasks"),
    ("/webhook", {"action": "START_TRAINING", "project": {"id": 1}}, 422, "--recipe"),
    ("/webhook", {"action": "START_TRAINING", "project": "x"}, 422, "project"),
    ("/webhook", {"action": "START_TRAINING", "project": "²"}, 422, "project"),
    ("/webhook", {"action": "START_TRAINING", "project": "9" * 5000}, 422, "project"),
    ("/predict", {"tasks": [{"id": 1, "data": "x"}], "label_config": BRUSH}, 422, "no picture"),
    ("/predict", {"tasks": [{"data": {"image": "http://["}}], "label_config": BRUSH}, 422, "address"),
    ("/train", {"project": "3.1"}, 422, "--recipe"), ("/nothing", {}, 404, "no such route"),
])  # fmt: skip
def test_mistakes_are_named(client, path, body, status, says):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_others_reach_the_backend_with_a_password_only_and_a_web_page_or_a_deep_body_can_not_post_here(fovea, client):
    with backend(fovea, files_of_label_studio({}), label_studio_backend_password="p w") as locked:
        assert locked.get("/health").json()["status"] == "UP"
        wrong = base64.b64encode(b"x:wrong")
        for header in ({}, *({b"authorization": b"Basic " + told} for told in (wrong, b"!", b"\xe4"))):
            assert locked.get("/versions", headers=header).status_code == 401
        assert locked.get("/versions", auth=("anybody", "p w")).status_code == 200
    for body, kind, status in ((b'{"action":"START_TRAINING"}', "text/plain", 415), (DEEP, "application/json", 400)):
        assert client.post("/webhook", content=body, headers={"content-type": kind}).status_code == status
    ours = ("localhost:9090", "127.0.0.1:9090", "[::1]:9090")
    for host in ("evil.test", "evil.test:9090", "127.0.0.1.evil.test", "10.0.0.7:9090", *ours):
        answers = {client.get(path, headers={"host": host}).status_code for path in ("/versions", "/health")}
        assert answers == {200 if host in ours else 403}, host
    ready = LabelStudioSettings(_env_file=None, label_studio_url="http://studio.test", label_studio_token="t")
    check_access(ready, "127.0.0.1")
    with pytest.raises(InvalidOption, match="without a password"):
        check_access(ready, "0.0.0.0")
    check_access(ready.model_copy(update={"label_studio_backend_password": "p"}), "0.0.0.0")
    with pytest.raises(InvalidOption, match="token"):
        check_access(LabelStudioSettings(_env_file=None), "127.0.0.1")


def test_detections_become_rectangles_and_the_first_class_that_is_a_choice_is_chosen():
    def seen(label: str, score: float) -> Detection:
        return Detection(box=(20, 10, 60, 35), score=score, label=label, class_id=0, area=1000, radius=16)

    facts = {"model": "m", "version": "1", "engine": "onnx", "times": Times(), "counts": {}}
    found = [seen("D40", 0.9), seen("d10", 0.6), seen("D43", 0.5)]
    answer = DetectOut(**facts, width=200, height=100, detections=found)
    pothole, crack = boxes_to_regions(answer, find_control(BOXES, "detect"))
    place = {"x": 10, "y": 10, "width": 20, "height": 25, "rotation": 0}
    assert pothole["value"] == {**place, "rectanglelabels": ["Pothole"]}
    assert (crack["value"]["rectanglelabels"], crack["score"]) == (["Crack"], 0.6)
    assert (pothole["original_width"], pothole["original_height"]) == (200, 100)
    top = [Candidate(label=name, class_id=0, probability=p) for name, p in (("snow", 0.6), ("Crack", 0.3))]
    whole = Classified(**top[0].model_dump(), box=(0, 0, 9, 9), top=top)
    answer = ClassifyOut(**facts, width=9, height=9, rows=1, columns=1, results=[whole])
    (region,) = choices_to_regions(answer, find_control(CHOICES, "classify"))
    assert (region["value"], region["score"]) == ({"choices": ["crack"]}, 0.3)


def png(width: int = 40, height: int = 20, orientation: int | None = None) -> bytes:
    out, tags = io.BytesIO(), Image.Exif()
    tags.update({274: orientation} if orientation else {})
    Image.new("RGB", (width, height), (90, 90, 90)).save(out, "PNG", exif=tags)
    return out.getvalue()


def region(kind: str, name: str = "box", **value: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": name, "value": value}


def test_boxes_and_choices_of_people_are_read_back_by_the_recipes(tmp_path):
    data = TrainingSet(tmp_path, find_control(BOXES, "detect"), 10_000)
    upright = {"x": 25, "y": 50, "width": 50, "height": 25, "rectanglelabels": ["Crack"]}
    turned = {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90, "rectanglelabels": ["Pothole"]}
    assert data.add(7, png(), [region("r", **upright), region("r", **turned), region("r", name="other", **upright)])
    assert data.add(8, png(20, 40, orientation=6), [region("r", **upright)])
    assert data.add(9, png(), [])
    for picture, error in ((b"x", UnsupportedMedia), (png(200, 100), TooLarge)):
        with pytest.raises(error):
            data.add(10, picture, [])
    data.close()
    found = find_boxes(tmp_path)
    assert found.names == ("Pothole", "Crack")
    assert [path.name for path in found.pictures] == ["task-000007.png", "task-000008.png", "task-000009.png"]
    upright = [[1, 10, 10, 30, 15]]  # as people saw the second picture
    assert [rows.tolist() for rows in found.rows] == [[*upright, [0, 15, 10, 20, 20]], upright, []]
    control = find_control(CHOICES.replace("sound", "not / sure (yet)").replace("crack", "train"), "classify")
    folder = tmp_path / "choices"
    data = TrainingSet(folder, control, 10_000)
    for number, choice in enumerate(control.labels):
        assert data.add(number, png(), [region("choices", "c", choices=[choice])])
    names = find_classes(folder)[0].names
    assert (names, tuple(map(control.label_of, names))) == (("not - sure (yet)", "train"), control.labels)


def test_outlines_and_brushes_become_masks_choices_folders_and_what_can_not_be_read_is_left_out(tmp_path):
    drawn = np.zeros((20, 40), bool)
    drawn[2:9, 3:30] = True
    data = TrainingSet(tmp_path / "a", find_control(BRUSH, "segment"), 10_000)
    assert data.add(1, png(), [region("b", "tag", rle=encode_brush(drawn))])
    assert data.add(2, png(), [region("p", "tag", points=[[0, 0], [50, 0], [50, 100], [0, 100]])])
    data.close()
    pairs, problems = find_masks(tmp_path / "a")
    assert not problems
    assert ((read_mask(pairs.masks[0]) > 0) == drawn).all()
    half = read_mask(pairs.masks[1]) > 0
    assert half[:, :20].all()
    assert not half[:, 20:].any()
    labels = data._control.labels
    other = region("b", "tag", rle=encode_brush(~drawn), brushlabels=["Instrument"])
    assert data.add(3, png(), [other, region("b", "tag", rle=encode_brush(drawn), brushlabels=[labels[0]])])
    assert ((np.asarray(Image.open(tmp_path / "a" / "masks" / "task-000003.png")) > 0) == drawn).all()
    folders = TrainingSet(tmp_path / "b", find_control(CHOICES, "classify"), 10_000)
    assert folders.add(1, png(), [region("choices", "c", choices=["crack"])])
    assert not folders.add(2, png(), [region("choices", "c", choices=["unheard of"])])
    assert find_classes(tmp_path / "b")[0].names == ("crack",)
    data = TrainingSet(tmp_path, find_control(BRUSH, "segment"), 10_000)
    for value in (*({"points": points} for points in ([[1, "x"]], [[1]], [[float("nan"), 1]] * 3)), "x"):
        with pytest.raises(Malformed):
            data.add(1, png(), [{"from_name": "tag", "value": value}])
    assert not data.pictures


def test_the_ground_truth_counts_else_the_newest_and_never_a_skipped_one():
    def picked(*annotations: tuple[str, dict[str, Any]]) -> object:
        told = [{"updated_at": when, "result": [{"id": when}], **more} for when, more in annotations]
        return pick_annotation({"annotations": told})

    skipped = ("2026-04", {"was_cancelled": True})
    assert picked(("2026-02", {}), ("2026-03", {}), skipped) == [{"id": "2026-03"}]
    assert picked(("2026-01", {"ground_truth": True}), ("2026-03", {})) == [{"id": "2026-01"}]
    assert picked(skipped) is None


def asked_studio(url: str = "http://studio.test:8080") -> tuple[LabelStudio, list[httpx2.URL]]:
    asked: list[httpx2.URL] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url)
        return httpx2.Response(200, content=b"{}")

    return LabelStudio(url, "t", limit=9, transport=httpx2.MockTransport(answer)), asked


async def test_files_of_tasks_are_fetched_from_label_studio_also_below_a_path():
    studio, asked = asked_studio()
    for address in (
        "/data/upload/1/a%20b.jpg", "/data/local-files/?d=roads/a.jpg",
        "http://studio.test:8080/data/upload/1/a.jpg", "/storage-data/uploaded/?filepath=upload/1/a.jpg",
        "/tasks/7/resolve/?fileuri=czM6Ly9hL2I=", "/projects/7/resolve/?fileuri=czM6Ly9hL2I=",
    ):  # fmt: skip
        assert await studio.fetch_picture(address) == b"{}"
    assert [(url.host, url.port) for url in asked] == [("studio.test", 8080)] * 6
    studio, asked = asked_studio("http://studio.test/label")
    for address in ("/label/data/a.png", "http://studio.test/label/data/a.png"):
        await studio.fetch_picture(address)
    with pytest.raises(InvalidOption):
        await studio.fetch_picture("/data/a.png")
    await studio.label_config(3)
    assert [url.path for url in asked] == ["/label/data/a.png", "/label/data/a.png", "/label/api/projects/3"]


async def test_what_is_no_file_of_a_task_or_of_elsewhere_is_not_fetched_and_label_studio_says_no():
    studio, asked = asked_studio()
    for address in (
        "http://[", "/a\x00b", "/" + "a" * 70_000,
        "/http://evil.test/a", "http://studio.test:8080/http://evil.test/a", "////evil.test/a", "/\\evil.test/a",
        "/api/current-user/token", "/api/projects/1/export?exportType=JSON", "/user/account", "/", "/data",
        "/database.sqlite", "/data/../api/current-user/token", "/data/%2e%2e/api/current-user/token",
        "/data/%2E./api/current-user/token", "/data/..\\api", "/data//evil.test", "//data/upload/1/a.jpg",
        "/tasks/7/annotations/", "/tasks/x/resolve/?fileuri=a", "/tasks/7/resolve/../../../api/users",
    ):  # fmt: skip
        with pytest.raises(InvalidOption):
            await studio.fetch_picture(address)
    assert not asked
    studio = files_of_label_studio({"/data/big": bytes(2**20 + 1)})
    with pytest.raises(TooLarge):
        await studio.fetch_picture("/data/big")
    for elsewhere in ("http://169.254.169.254/latest", "//evil.test/a", "http://studio.test:9/a", "file:///etc/passwd"):
        with pytest.raises(InvalidOption):
            await studio.fetch_picture(elsewhere)
    answer = httpx2.Response(303, headers={"location": "https://bucket.test/a.jpg?signature=x"})
    signed = LabelStudio("http://studio.test", "t", limit=9, transport=httpx2.MockTransport(lambda _: answer))
    with pytest.raises(NotReady, match="pre-signed"):
        await signed.fetch_picture("/tasks/7/resolve/?fileuri=a")
    studio._token = "wrong"
    with pytest.raises(PermissionDenied, match="token"):
        await studio.fetch_picture("http://studio.test:8080/data/big")


def draw_disc(number: int) -> tuple[bytes, np.ndarray]:
    rng, (rows, columns) = np.random.default_rng(number), np.mgrid[:96, :96]
    y, x = rng.uniform(30, 66, 2)
    mask = (rows - y) ** 2 + (columns - x) ** 2 < 15**2
    pixels = np.where(mask[..., None], (230, 160, 140), (120, 60, 50)) + rng.normal(0, 8, (96, 96, 3))
    return encode(np.clip(pixels, 0, 255).astype(np.uint8)), mask


def project(pictures: int) -> dict[str, Any]:
    """An export of Label Studio: discs, each with its brush, and a task whose picture is gone."""
    files: dict[str, Any] = {"/api/projects/3": {"label_config": BRUSH}}
    tasks: list[dict[str, Any]] = [{"id": 99, "data": {"image": "/data/gone.png"}, "annotations": [{"result": []}]}]
    for number in range(pictures):
        files[f"/data/{number}.png"], mask = draw_disc(number)
        brush = region("brushlabels", "tag", rle=encode_brush(mask))
        tasks.append({"id": number, "data": {"image": f"/data/{number}.png"}, "annotations": [{"result": [brush]}]})
    files["/api/projects/3/export"] = tasks
    return files


SHORT = ("schedule.steps=2", "schedule.batch=4", "schedule.validate_every=2", "choose=4", "scale.side=96")


@pytest.mark.release  # a real training in a process of its own
def test_labels_are_trained_on_by_fovea_train(fovea, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path / "data"))
    plan = TrainingPlan("segment", "pranet", "pranet-annotated", tmp_path / "runs", 10_000, SHORT)
    with backend(fovea, files_of_label_studio(project(20)), plan, fit_every=2) as client:
        event = {"action": "ANNOTATION_CREATED", "project": {"id": 3}}
        assert client.post("/webhook", json=event).json() == {"status": "counted", "new_annotations": 1}
        assert client.post("/webhook", json=event).status_code == 201
        again = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
        assert (again.status_code, again.json()["code"]) == (409, "conflict")
        busy = {"exporting", "training"}
        state = wait_until(lambda: (now := client.get("/status").json())["status"] not in busy and now, 900)
    log = (tmp_path / "runs/project-3.log").read_text()
    assert state["status"] == "finished", log
    assert (state["pictures"], state["left_out"]) == (20, {"99": "Label Studio answered 404."})
    assert "17 pictures to train on, 3 held out" in log
    assert (tmp_path / "data/weights/pranet-annotated.safetensors").exists()


async def test_a_training_that_can_not_be_says_why(tmp_path, monkeypatch, capfdbinary):
    program = tmp_path / "python"  # says its words; below they are those of a command that fails alike
    program.write_text('#!/bin/sh\necho "$@"\nexit 4\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    plan = TrainingPlan("segment", "no-such-recipe", "x", tmp_path / "runs", 10_000)
    runs = TrainingRuns(files_of_label_studio(project(1)), plan)
    runs.start(3)
    state = await asyncio.wait_for(runs.wait(), 120)
    assert (state.status, "ended with 4" in state.detail) == ("failed", True), state.detail
    start, name, *words = (tmp_path / "runs/project-3.log").read_text().split()
    code, _, err = command_runner(monkeypatch, capfdbinary)(*words)
    assert (start, name, code, "no-such-recipe" in err) == ("-m", "fovea", 4, True), err
    runs.start(4)
    assert (await runs.wait()).detail == "Label Studio answered 404."
