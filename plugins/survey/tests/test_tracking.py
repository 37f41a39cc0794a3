"""Ids follow objects: through motion, short absence and doubt; and nothing grows with the length of a stream."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fovea_survey.video.tracking import MAX_FRAMES_AWAY, Tracker


def _row(x: float, y: float, score: float = 0.9, kind: int = 0, side: float = 20) -> list[float]:
    return [x, y, x + side, y + side, score, kind]


def _rows(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)


def test_a_moving_object_keeps_its_id():
    tracker = Tracker(0.25)
    assert [tracker.update(_rows(_row(4 * t, 2 * t)))[0] for t in range(30)] == [1] * 30


def test_two_objects_that_pass_each_other_keep_theirs():
    tracker = Tracker(0.25)
    for t in range(30):
        assert tracker.update(_rows(_row(5 * t, 0), _row(150 - 5 * t, 12))) == [1, 2]


def test_an_object_that_is_away_for_a_while_comes_back_as_itself():
    tracker = Tracker(0.25)
    for t in range(5):
        tracker.update(_rows(_row(3 * t, 0)))
    for _ in range(4):
        assert tracker.update(_rows()) == []
    assert tracker.update(_rows(_row(3 * 9, 0))) == [1]


def test_an_object_that_is_away_too_long_is_new():
    tracker = Tracker(0.25)
    tracker.update(_rows(_row(0, 0)))
    for _ in range(MAX_FRAMES_AWAY + 1):
        tracker.update(_rows())
    assert tracker.alive == 0
    assert tracker.update(_rows(_row(0, 0))) == [2]


def test_doubt_continues_a_track_and_begins_none():
    tracker = Tracker(0.5)
    assert tracker.update(_rows(_row(0, 0, 0.2))) == [None]
    assert tracker.update(_rows(_row(0, 0, 0.9))) == [1]
    assert tracker.update(_rows(_row(1, 0, 0.2))) == [1]


def test_another_class_is_another_object():
    tracker = Tracker(0.25)
    tracker.update(_rows(_row(0, 0, kind=0)))
    assert tracker.update(_rows(_row(0, 0, kind=1))) == [2]


@given(st.integers(0, 2**31))
def test_ids_in_a_frame_are_distinct(seed):
    rng, tracker = np.random.default_rng(seed), Tracker(0.3)
    for _ in range(10):
        count = int(rng.integers(0, 12))
        corner = rng.uniform(0, 60, (count, 2))
        rows = np.c_[corner, corner + rng.uniform(5, 40, (count, 2)), rng.random(count), rng.integers(0, 2, count)]
        ids = [each for each in tracker.update(rows) if each is not None]
        assert len(ids) == len(set(ids))


def test_memory_stays_flat_however_long_the_stream_is():
    rng, tracker = np.random.default_rng(1), Tracker(0.25)
    for _ in range(300):
        tracker.update(_rows(*(_row(*rng.uniform(0, 5000, 2)) for _ in range(3))))
    assert tracker.alive <= 3 * (MAX_FRAMES_AWAY + 1)
