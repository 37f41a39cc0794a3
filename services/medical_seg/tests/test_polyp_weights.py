"""The committed PraNet: right on its sample, and aware of what is no colonoscopy frame."""

import numpy as np
import pytest

from services.medical_seg.models.pranet import PraNetSegmenter
from shared.api.mask import SegmentIn
from shared.registry import CallContext, LoadContext
from shared.vision.draw import encode


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("place")
    servable = PraNetSegmenter.load(LoadContext(cache=home / "cache", weights=home / "none", threads=1, engine="torch"))
    yield servable
    servable.close()


def test_the_polyp_of_the_sample_is_marked_without_a_warning(served):
    (answer,) = served.predict([served.example()], CallContext())
    assert answer.warnings == []
    assert answer.component_count == 1
    (x, y), area = answer.components[0].centre, answer.components[0].area
    assert abs(x - 112) < 15
    assert abs(y - 178) < 15
    assert 2_000 < area < 12_000
    assert served.card.variant == "efficientnet-lite0"


def test_what_is_no_frame_is_answered_with_a_warning(served):
    rng, rows = np.random.default_rng(0), np.mgrid[:240, :320][0]
    wall = np.repeat((140 + rows[..., None] / 8).astype(np.uint8), 3, axis=-1)
    others = [wall, rng.integers(0, 256, (240, 320, 3), np.uint8)]
    answers = served.predict([SegmentIn(image=encode(other)) for other in others], CallContext())
    assert all(answer.warnings for answer in answers)
