"""Streams: ids of objects, every frame answered or the oldest dropped, memory flat; and the route."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.boxes import DetectedFrame, DetectIn, Detection, DetectOut
from fovea.api.image import Times
from fovea.errors import InvalidOption, NotReady
from fovea_survey.video.frame_parsers import JpegParser
from fovea_survey.video.stream_pipeline import DetectStreamOptions, detect_frames
from fovea_survey.video.tracking import MAX_FRAMES_AWAY, Tracker
from plugins.survey.tests.films import write_film
from services.detection.tests.test_box_detector import CARD, NAMES, Blobs, Toy
from shared.registry import CallContext, LoadContext
from shared.serving.build_app import build
from shared.settings import Settings
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds
from shared.vision.servable import DataConfig
from tests.harness.waiting import until


def _row(x: float, y: float, score: float = 0.9, kind: int = 0, side: float = 20) -> list[float]:
    return [x, y, x + side, y + side, score, kind]


def _rows(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)


def test_moving_objects_keep_their_ids_also_when_they_pass_each_other():
    tracker = Tracker(0.25)
    assert [tracker.update(_rows(_row(4 * t, 2 * t)))[0] for t in range(30)] == [1] * 30
    tracker = Tracker(0.25)
    for t in range(30):
        assert tracker.update(_rows(_row(5 * t, 0), _row(150 - 5 * t, 12))) == [1, 2]


def test_an_object_that_is_away_comes_back_as_itself_or_as_new():
    tracker = Tracker(0.25)
    for t in range(5):
        tracker.update(_rows(_row(3 * t, 0)))
    assert ([tracker.update(_rows()) for _ in range(4)], tracker.update(_rows(_row(3 * 9, 0)))) == ([[]] * 4, [1])
    for _ in range(MAX_FRAMES_AWAY + 1):
        tracker.update(_rows())
    assert (tracker.alive, tracker.update(_rows(_row(3 * 9, 0)))) == (0, [2])


def test_doubt_begins_no_track_and_another_class_does():
    tracker = Tracker(0.5)
    assert (tracker.update(_rows(_row(0, 0, 0.2))), tracker.update(_rows(_row(0, 0, 0.9)))) == ([None], [1])
    assert tracker.update(_rows(_row(1, 0, 0.2))) == [1]
    tracker = Tracker(0.25)
    tracker.update(_rows(_row(0, 0, kind=0)))
    assert tracker.update(_rows(_row(0, 0, kind=1))) == [2]


@given(st.integers(0, 2**31))
def test_ids_in_a_frame_are_distinct_and_few_are_kept_however_long_the_stream_is(seed):
    rng, tracker = np.random.default_rng(seed), Tracker(0.3)
    for _ in range(10):
        count = int(rng.integers(0, 12))
        corner = rng.uniform(0, 60, (count, 2))
        rows = np.c_[corner, corner + rng.uniform(5, 40, (count, 2)), rng.random(count), rng.integers(0, 2, count)]
        ids = [each for each in tracker.update(rows) if each is not None]
        assert len(ids) == len(set(ids))
    for _ in range(2 * MAX_FRAMES_AWAY):
        tracker.update(_rows(_row(*rng.uniform(0, 5000, 2))))
    assert tracker.alive <= MAX_FRAMES_AWAY + 1


def _pixels(x: int) -> np.ndarray:
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[20:36, x : x + 16] = 0
    return pixels


def _jpeg(x: int = 20) -> bytes:
    return encode(_pixels(x), "image/jpeg", quality=95)


def _found(score: float = 0.9, x: float = 0) -> DetectOut:
    each = Detection(box=(x, 0, x + 10, 10), score=score, label="hole", class_id=0, area=100, radius=5)
    facts = {"model": "toy", "version": "1", "engine": "toy", "counts": {}, "times": Times()}
    return DetectOut(width=64, height=64, detections=[each], **facts)


async def _detect(_: DetectIn) -> DetectOut:
    await asyncio.sleep(0)
    return _found()


async def _chunks(frames: list[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


async def _answers(frames: list[bytes], detect: Any, **options: Any) -> list[DetectedFrame]:
    source = detect_frames(_chunks(frames), JpegParser(DecodeBounds()), DetectStreamOptions(**options), detect)
    return [told async for told, _ in source]


async def test_what_is_wrong_with_every_frame_ends_the_stream_and_what_the_sender_breaks_is_raised_in_its_turn():
    for error in (NotReady("away"), InvalidOption("no such class", field="classes")):

        async def detect(_: DetectIn, error: Exception = error) -> DetectOut:
            raise error

        with pytest.raises(type(error)):
            await _answers([_jpeg()] * 3, detect)

    async def broken() -> AsyncIterator[bytes]:
        yield _jpeg()
        raise ConnectionError

    source = detect_frames(broken(), JpegParser(DecodeBounds()), DetectStreamOptions(), _detect)
    assert (await anext(source))[0].frame == 0
    with pytest.raises(ConnectionError):
        await anext(source)


async def test_doubtful_detections_are_told_only_where_they_continue_a_track():
    scores = iter((0.9, 0.15, 0.15))
    asked = []

    async def detect(call: DetectIn) -> DetectOut:
        asked.append(call.confidence)
        return _found(next(scores))

    assert [len(each.detections) for each in await _answers([_jpeg()] * 3, detect, confidence=0.5)] == [1, 1, 1]
    assert asked == [0.1] * 3
    scores = iter((0.15, 0.9))
    assert [len(each.detections) for each in await _answers([_jpeg()] * 2, detect, confidence=0.5)] == [0, 1]


async def test_leaving_early_stops_the_reading():
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield _jpeg()
            await asyncio.sleep(0)

    source = detect_frames(endless(), JpegParser(DecodeBounds()), DetectStreamOptions(queue=3), _detect)
    await anext(source)
    await source.aclose()
    seen = read
    for _ in range(50):
        await asyncio.sleep(0)
    assert read == seen <= 8


async def test_every_frame_of_a_long_stream_is_answered_in_order_in_the_same_memory():
    frame, peaks, count = _jpeg(), [], 0
    options = DetectStreamOptions(drop="none", queue=4)
    tracemalloc.start()
    try:
        async for told, _ in detect_frames(_chunks([frame] * 900), JpegParser(DecodeBounds()), options, _detect):
            assert (told.frame, told.dropped, told.detections[0].track_id) == (count, 0, 1)
            count += 1
            if count in {300, 900}:
                peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert count == 900
    assert peaks[1] - peaks[0] < 200 * len(frame)  # of 600; other threads of the process need some, too


class Watching(Toy):
    """The toy detector, as a service loads it, for pictures of `side` pixels."""

    side = 64

    @classmethod
    def load(cls, place: LoadContext) -> Toy:  # as services call it
        return cls(CARD, Blobs(), DataConfig(cls.side, NAMES))

    def example(self) -> DetectIn:
        return DetectIn(image=_jpeg())


@pytest.fixture
async def client(tmp_path):
    settings = Settings(_env_file=None, data_dir=tmp_path, max_body_bytes=20_000, shutdown_grace_s=1)
    app = build("detection", servables={"toy-detector": Watching}, settings=settings)
    async with app.router.lifespan_context(app):
        await until(lambda: app.state.host.ready, 60)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as session:
            yield session


MJPEG = {"content-type": "video/x-motion-jpeg"}


async def test_a_stream_is_answered_line_by_line(client):
    answer = await client.post("/v1/detect/stream", content=_jpeg(4) + b"nonsense" + _jpeg(8), headers=MJPEG)
    assert answer.headers["content-type"].startswith("application/x-ndjson"), answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert lines[1]["problem"]["status"] == 415
    assert lines[0]["detections"][0]["track_id"] == lines[2]["detections"][0]["track_id"] == 1
    np.testing.assert_allclose(lines[2]["detections"][0]["box"], (8, 20, 24, 36), atol=1)


async def test_a_film_is_answered_frame_by_frame_and_a_job_hears_how_far_it_is(client, tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.webm", [_pixels(x) for x in range(10)])
    heard: list[tuple[float, str | None]] = []
    monkeypatch.setattr(CallContext, "progress", lambda _, fraction, note=None: heard.append((fraction, note)))
    answer = await client.post("/v1/detect/stream?every=4", content=film, headers={"content-type": "video/webm"})
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["frame"] for line in lines] == [0, 4, 8]
    assert [line["detections"][0]["track_id"] for line in lines] == [1, 1, 1]
    assert heard == [(0.1, "frame 1 of 10"), (0.5, "frame 5 of 10"), (0.9, "frame 9 of 10")]
    cut = film[: len(film) * 3 // 4]
    answer = await client.post("/v1/detect/stream?every=100", content=cut, headers={"content-type": "video/webm"})
    assert [("problem" in json.loads(line)) for line in answer.text.splitlines()] == [False, True]


async def test_a_stream_counts_from_the_score_at_which_the_weights_count_best(client, monkeypatch):
    monkeypatch.setattr(Watching, "details", lambda _: {"confidence": 0.95})  # the toy is sure by 0.9
    for query, count in (("", 0), ("?confidence=0.5", 1)):
        answer = await client.post(f"/v1/detect/stream{query}", content=_jpeg(), headers=MJPEG)
        assert len(answer.json()["detections"]) == count


async def test_the_oldest_are_dropped_and_counted_where_frames_come_faster_than_answers(client):
    answer = await client.post("/v1/detect/stream?drop=oldest&queue=2", content=_jpeg() * 15, headers=MJPEG)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    dropped, numbers = lines[-1]["dropped_total"], [line["frame"] for line in lines]
    assert (numbers[-1], dropped) == (14, 15 - len(lines))
    assert 1 < len(lines) < 15
    assert all(b - a == line["dropped"] + 1 for a, b, line in zip(numbers, numbers[1:], lines[1:], strict=False))
    metrics = (await client.get("/metrics")).text
    line = next(line for line in metrics.splitlines() if line.startswith("fovea_dropped_frames_total{"))
    assert float(line.rpartition(" ")[2]) >= dropped


async def test_a_stream_may_be_longer_than_any_body_and_its_film_is_drawn(client):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield _jpeg()

    assert 40 * len(_jpeg()) > 20_000
    assert len((await client.post("/v1/detect/stream", content=body(), headers=MJPEG)).text.splitlines()) == 40
    headers = {**MJPEG, "accept": "multipart/x-mixed-replace"}
    answer = await client.post("/v1/detect/stream", content=_jpeg() * 2, headers=headers)
    assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
    assert answer.content.count(b"content-type: image/jpeg") == 2


async def test_a_bad_stream_is_an_ordinary_problem(client):
    for query, headers, body, status, field in (
        ("?confidence=7", MJPEG, b"x", 422, "confidence"), ("?colour=red", MJPEG, b"x", 422, "colour"),
        ("?classes=whale", MJPEG, _jpeg(), 422, "classes"), ("?model=nobody", MJPEG, b"x", 404, "model"),
        ("", {"content-type": "text/plain"}, b"x", 415, None), ("", MJPEG, b"", 400, "body"),
        ("", {"content-type": "multipart/x-mixed-replace"}, b"x", 400, None),
        ("", {**MJPEG, "accept": "image/png"}, b"x", 406, None),
    ):  # fmt: skip
        answer = await client.post(f"/v1/detect/stream{query}", content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json().get("field") == field
