"""Thin, tall, huge and hollow pictures: an answer within a second and a hundred megabytes, or a clear refusal."""

import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from fovea.api.mask import SegmentIn
from fovea.errors import Cancelled, QueueFull, TooLarge
from services.medical_seg.postprocess import Segmentation, encode_forms, extract_mask
from shared.registry import CallContext
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds, PictureMemory
from shared.vision.mask_regions import find_regions

ALL = ("mask", "contours", "rle", "probability", "overlay")

_MEASURE = textwrap.dedent(
    """
    import io, json, sys, time
    from pathlib import Path

    import numpy as np
    from PIL import Image
    from services.medical_seg.models.pranet import PraNetSegmenter
    from fovea.errors import FoveaError
    from shared.registry import CallContext, LoadContext

    def picture(width, height, hollow):
        page, out = Image.new("L", (width, height), 200), io.BytesIO()
        if hollow:
            page.paste(20, (width // 8, height // 8, width * 7 // 8, height * 7 // 8))
        page.save(out, "PNG", compress_level=1)
        return out.getvalue()

    def kilobytes(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    Image.MAX_IMAGE_PIXELS = None
    folder, graphs = map(Path, sys.argv[1:])
    model = PraNetSegmenter.load(LoadContext(cache=folder, weights=folder / "none", graphs=graphs, threads=1))
    model.predict([model.example()], CallContext())
    logits = np.full((352, 352), -9, np.float32)
    logits[40:300, 40:300] = 9
    logits[80:260, 80:260] = -9
    run = model.run_engine
    model.run_engine = lambda feeds: [(logits[None],) for _ in run(feeds)]
    for line in sys.stdin:
        data = picture(*json.loads(line))
        Path("/proc/self/clear_refs").write_text("5")
        before, started = kilobytes("VmRSS"), time.process_time()
        (answer,) = model.predict([model.In(image=data)], CallContext())
        failed = isinstance(answer, FoveaError)
        print(json.dumps({
            "status": answer.status if failed else 200,
            "seconds": time.process_time() - started,
            "megabytes": (kilobytes("VmHWM") - before) / 1024,
            "contours": 0 if failed else len(answer.contours),
        }), flush=True)
    """
)

SHAPES = {
    "thin": ((64_000_000, 1, False), 413), "tall": ((1, 400_000, False), 413), "line": ((16_384, 1, False), 200),
    "wide": ((16_384, 512, False), 200), "huge": ((8_000, 8_000, False), 413),
    "hollow": ((2_896, 2_896, True), 200),
}  # fmt: skip
"""Name → width, height and whether it is a frame around nothing; and the status of its answer."""


@pytest.mark.timed("an answer may take one processor second, which caches shared with other processes lengthen")
def test_hostile_shapes_are_answered_soon_in_little_memory(tmp_path, exported_graphs):
    asked = "".join(json.dumps(shape) + "\n" for shape, _ in SHAPES.values())
    command = [sys.executable, "-c", _MEASURE, str(tmp_path), str(exported_graphs)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]  # the rest is the log
    found = dict(zip(SHAPES, map(json.loads, said), strict=True))
    assert {name: each["status"] for name, each in found.items()} == {name: s for name, (_, s) in SHAPES.items()}
    # Processor seconds: other processes of a busy machine don't count.
    assert max(each["seconds"] for each in found.values()) < 1, found
    assert max(each["megabytes"] for each in found.values()) < 100, found
    assert found["hollow"]["contours"] == 2


def test_outlines_with_too_many_corners_are_refused_before_they_are_traced():
    noise = np.random.default_rng(0).random((900, 900)) < 0.5
    regions, labels = find_regions(noise)
    found = Segmentation(noise, noise.astype(np.uint8) * 255, labels, regions, 1.0)
    with pytest.raises(TooLarge, match="corners") as refusal:
        encode_forms(found, SegmentIn(image=b"x", include=("contours",)))
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


def test_memory_is_estimated_from_the_header():
    bounds = DecodeBounds(memory=PictureMemory(100_000))
    for _ in range(2):
        assert decode(picture(100), bounds).width == 100
        with pytest.raises(TooLarge, match="memory") as refusal:
            decode(picture(200), bounds)
        assert "FOVEA_PICTURE_MEMORY_BYTES" in refusal.value.hint


def test_a_picture_waits_for_memory_that_others_hold():
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
