"""The comparison that contract tests lean on sees what it should, and nothing else."""

import base64

import numpy as np
import pytest
from pydantic import BaseModel

from shared.vision.draw import encode
from tests.contract.sameness import differences


class Answer(BaseModel):
    """An answer with a number, a text, a list and a time."""

    score: float = 1.0
    text: str = "a"
    rows: list[int] = [1, 2]
    times: float = 0.0


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        (Answer(), Answer(times=9.0), 0),
        (Answer(), Answer(score=1.00001), 0),
        (Answer(), Answer(score=1.001), 1),
        (Answer(), Answer(text="b"), 1),
        (Answer(), Answer(rows=[1]), 1),
        (Answer(), Answer(rows=[1, 3]), 1),
        ([Answer()], [Answer(), Answer()], 1),
        ([Answer(), Answer(text="b")], [Answer(), Answer(text="c")], 1),
        ({"a": 1}, {"b": 1}, 1),
        (Answer(score=float("nan")), Answer(), 1),
    ],
)
def test_differences_are_counted(first, second, count):
    assert len(differences(first, second)) == count


def test_pictures_are_compared_by_their_pixels():
    page = np.zeros((50, 50, 3), np.uint8)
    near, far = page.copy(), page.copy()
    near[0, 0], far[:5] = 255, 255
    one, two, three = ({"mask": base64.b64encode(encode(p)).decode()} for p in (page, near, far))
    assert differences(one, two) == []
    assert len(differences(one, two, tolerance=0)) == 1
    assert len(differences(one, three)) == 1
