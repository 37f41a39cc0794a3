"""VisionServable: reads, infers and answers whatever a family puts into it; each request fails for itself."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict

from fovea.api.image import Drawable, ImageBytes, Times
from fovea.api.tensors import TensorSpec
from fovea.errors import Cancelled, DeadlineExceeded, FoveaError, TooLarge
from shared.export.artifacts import ExportedForms
from shared.registry import CallContext, Limits, LoadContext
from shared.registry.weights import Weights
from shared.settings import Settings
from shared.vision import servable
from shared.vision.draw import encode
from shared.vision.limits import DEFAULT_BOUNDS, DecodeBounds, platform_bounds
from tests.harness.models import toy_card


class GreyIn(BaseModel):
    model_config = ConfigDict(frozen=True)
    image: ImageBytes
    rows: bool = False
    fail: type[FoveaError] | None = None


class GreyOut(Drawable):
    model: str
    version: str
    engine: str
    mean: float
    rows: list[float] | None = None
    times: Times
    notes: list[str]


CARD = toy_card("grey", "echo", limits=Limits(max_side=64))


class MeanEngine:
    """An engine that takes squares and gives the mean of each and of its rows."""

    name = "mean"
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8)),)
    outputs = (
        TensorSpec(name="mean", datatype="FP32", shape=(-1,)),
        TensorSpec(name="rows", datatype="FP32", shape=(-1, 8)),
    )

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(len(feeds["image"]))
        time.sleep(0.002)
        return {"rows": feeds["image"].mean(axis=2), "mean": feeds["image"].mean(axis=(1, 2))}

    def close(self) -> None:
        """Nothing is held."""


class Grey(servable.VisionServable[GreyIn, GreyOut, servable.VisionItem[GreyIn]]):
    """A family and a model in one."""

    In: ClassVar[type[BaseModel]] = GreyIn
    Out: ClassVar[type[BaseModel]] = GreyOut
    card = CARD
    forms = ("text/plain",)

    @classmethod
    def artifacts(cls, weights: Weights, config: servable.DataConfig, cache: Path) -> ExportedForms:
        raise NotImplementedError

    def read(self, request: GreyIn, watch: servable.Stopwatch, run: CallContext) -> servable.VisionItem[GreyIn]:
        image = servable.decode_field(request.image, self.bounds)
        watch.lap("decode")
        grey = np.asarray(Image.fromarray(image.pixels).convert("L").resize((8, 8)), np.float32)
        notes = servable.reading_notes("Squashed.", image)
        return servable.VisionItem(request=request, watch=watch, inputs=(grey,), notes=notes)

    def postprocess(self, item: servable.VisionItem[GreyIn]) -> GreyOut:
        mean, rows = item.outputs
        time.sleep(0.001)
        return GreyOut(**self.facts(item), mean=float(mean), rows=rows.tolist() if item.request.rows else None)

    def draw(self, item: servable.VisionItem[GreyIn], answer: GreyOut, media_type: str) -> bytes | None:
        return " ".join(f"{row:.0f}" for row in item.outputs[1]).encode()


class OneByOne(Grey):
    """The same, for items that are too large to be held together; it tells its progress."""

    one_at_a_time = True

    def infer(self, items: Sequence[servable.VisionItem[GreyIn]], run: CallContext) -> None:
        super().infer(items, run)
        if items[0].request.fail:
            raise items[0].request.fail("Too late.")
        run.progress(0.5, "half")
        run.progress(1.0)


def picture(shade: int, side: int = 16) -> bytes:
    return encode(np.full((side, side, 3), shade, np.uint8))


@pytest.fixture
def grey():
    return Grey(CARD, MeanEngine())


def test_a_batch_is_one_run_each_answer_is_its_own_and_what_nobody_can_read_never_reaches_the_engine(grey):
    assert (grey.predict([], CallContext()), len(grey.predict([GreyIn(image=b"")], CallContext()))) == ([], 1)
    shades = [10, 200, 90]
    answers = grey.predict([GreyIn(image=picture(shade), rows=shade == 90) for shade in shades], CallContext())
    assert [answer.mean for answer in answers] == shades
    assert [answer.rows for answer in answers] == [None, None, [90.0] * 8]
    assert grey.engine.batches == [3]
    told = {(a.model, a.version, a.engine, a.notes[0]) for a in answers}
    assert told == {("grey", CARD.version, "mean", "Squashed.")}
    for times in (answer.times for answer in answers):
        assert min(times.decode, times.preprocess) > 0
        assert times.infer >= 2
        assert times.post >= 1


def test_large_items_go_one_at_a_time_and_one_that_is_too_late_leaves_the_others_their_answers():
    told: list[tuple[float, str | None]] = []
    slow = OneByOne(CARD, MeanEngine())
    run = CallContext(report=lambda *news: told.append(news))
    answers = slow.predict([GreyIn(image=picture(10)), GreyIn(image=picture(20))], run)
    assert [answer.mean for answer in answers] == [10, 20]
    assert slow.engine.batches == [1, 1]
    assert told == [(0.25, "half"), (0.5, None), (0.75, "half"), (1.0, None)]
    slow = OneByOne(CARD, MeanEngine())
    late, good = GreyIn(image=picture(10), fail=DeadlineExceeded), GreyIn(image=picture(20))
    assert [type(one) for one in slow.predict([late, good], CallContext())] == [DeadlineExceeded, GreyOut]
    with pytest.raises(Cancelled):
        slow.predict([GreyIn(image=picture(10), fail=Cancelled), good], CallContext())


def test_a_rendering_needs_no_second_run_and_an_answer_in_json_holds_nothing_of_its_making(grey):
    request, run = GreyIn(image=picture(30)), CallContext()
    run.media = "text/plain"
    (answer,) = grey.predict([request], run)
    assert grey.render(request, answer, "text/plain") == b"30 30 30 30 30 30 30 30"
    assert grey.render(request, answer, "image/png") is None
    assert grey.media_types() == ("text/plain",)
    assert grey.engine.batches == [1]
    assert "scene" not in answer.model_dump_json()
    (answer,) = grey.predict([request], CallContext())
    assert answer.scene is None
    assert grey.render(request, answer, "text/plain") is None


def test_bounds_are_the_cards_and_the_platforms_and_share_one_budget_of_memory():
    place = LoadContext(options={"max_pixels": "3000", "max_body_bytes": "100000"})
    bounds = servable.decode_bounds(CARD, place)
    assert bounds == DecodeBounds(bytes=100_000, pixels=3000, min_side=1, max_side=64)
    strict = Grey(CARD, MeanEngine(), bounds=bounds)
    (answer,) = strict.predict([GreyIn(image=picture(10, side=65))], CallContext())
    assert isinstance(answer, TooLarge)
    settings = Settings(_env_file=None, max_side=99)
    place = LoadContext(options={"picture_memory_bytes": str(settings.picture_memory_bytes)})
    routes, model = platform_bounds(settings), servable.decode_bounds(CARD, place)
    assert routes.memory is model.memory is DEFAULT_BOUNDS.memory
    assert routes.max_side == 99
