"""Thin, tall, huge and hollow pictures: an answer within a second and a hundred megabytes, or a clear refusal."""

import ctypes
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.api.mask import SegmentIn
from fovea.errors import Cancelled, QueueFull, TooLarge
from services.medical_seg.models.pranet import PraNetSegmenter
from services.medical_seg.postprocess import Segmentation, encode_forms, extract_mask
from shared.registry import CallContext, LoadContext
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds, PictureMemory
from shared.vision.mask_regions import find_regions

ALL = ("mask", "contours", "rle", "probability", "overlay")

SHAPES = [
    (64_000_000, 1, False, 413), (1, 400_000, False, 413), (16_384, 1, False, 200), (16_384, 512, False, 200),
    (8_000, 8_000, False, 413), (2_896, 2_896, True, 200),
]  # fmt: skip
"""Width, height, whether it is a frame around nothing, and the status of its answer."""


def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def model(tmp_path_factory, exported_graphs):
    """A network that finds a frame in every picture."""
    folder = tmp_path_factory.mktemp("frames")
    place = LoadContext(cache=folder, weights=folder / "none", graphs=exported_graphs, threads=1)
    made = PraNetSegmenter.load(place)
    logits = np.full((352, 352), -9, np.float32)
    logits[40:300, 40:300] = 9
    logits[80:260, 80:260] = -9
    run = made.run_engine
    made.run_engine = lambda feeds: [(logits[None],) for _ in run(feeds)]
    made.predict([made.example()], CallContext())
    yield made
    made.close()


@pytest.mark.timed("an answer may take one processor second, which caches shared with other processes lengthen")
@pytest.mark.parametrize(("width", "height", "hollow", "status"), SHAPES)
def test_hostile_shapes_are_answered_soon_in_little_memory(model, width, height, hollow, status):
    page, out = Image.new("L", (width, height), 200), io.BytesIO()
    if hollow:
        page.paste(20, (width // 8, height // 8, width * 7 // 8, height * 7 // 8))
    page.save(out, "PNG", compress_level=1)
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier pictures left must not serve this one uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before, started = kilobytes("VmRSS"), time.process_time()
    (answer,) = model.predict([SegmentIn(image=out.getvalue())], CallContext())
    assert time.process_time() - started < 1  # processor seconds: other processes of a busy machine don't count
    assert (kilobytes("VmHWM") - before) / 1024 < 100
    assert getattr(answer, "status", 200) == status
    assert status != 200 or not hollow or len(answer.contours) == 2


def found_in(mask):
    regions, labels = find_regions(mask)
    return Segmentation(mask, mask.astype(np.uint8) * 255, labels, regions, 1.0)


def test_outlines_with_too_many_corners_are_refused_before_they_are_traced():
    noise = np.random.default_rng(0).random((900, 900)) < 0.5
    with pytest.raises(TooLarge, match="corners") as refusal:
        encode_forms(found_in(noise), SegmentIn(image=b"x", include=("contours",)))
    assert refusal.value.field == "include"
    assert "rle" in refusal.value.hint


@pytest.mark.parametrize("step", range(4))
def test_long_post_processing_stops_when_the_request_is_cancelled(step):
    run, calls = CallContext(), []

    def check():
        calls.append(1)
        if len(calls) > step:
            run.cancel()
        run.check()

    request = SegmentIn(image=b"x", include=ALL)
    with pytest.raises(Cancelled):
        encode_forms(extract_mask(np.zeros((9, 9), np.float32), 600, 600, request, check), request, check)
    assert len(calls) == step + 1


def picture(side):
    return encode(np.zeros((side, side, 3), np.uint8))


def test_memory_is_estimated_from_the_header_and_waited_for_while_others_hold_it():
    bounds = DecodeBounds(memory=PictureMemory(100_000))
    for _ in range(2):
        assert decode(picture(100), bounds).width == 100
        with pytest.raises(TooLarge, match="memory") as refusal:
            decode(picture(200), bounds)
        assert "FOVEA_PICTURE_MEMORY_BYTES" in refusal.value.hint
    budget = PictureMemory(1000, patience_s=0.05)
    with budget.reserve(800, "One"), pytest.raises(QueueFull), budget.reserve(300, "Another"):
        pass
    patient, order, entered = PictureMemory(1000, patience_s=5), [], threading.Event()

    def wait():
        entered.set()
        with patient.reserve(300, "Another"):
            order.append("second")

    with patient.reserve(800, "One"):
        thread = threading.Thread(target=wait)
        thread.start()
        entered.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
