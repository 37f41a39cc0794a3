"""Cells are computed once, whatever happens to the process in between."""

import os

import pytest

from services.interpretability.core.cell_cache import CellCache
from shared.storage import ObjectStore


def test_cell_is_computed_once_and_read_by_the_next_process(tmp_path):
    calls = []
    for _ in range(2):
        entry = CellCache(ObjectStore.open(tmp_path.as_uri())).get_or_compute(
            {"a": 1}, lambda: calls.append(1) or [0.1, None]
        )
        assert entry.value == [0.1, None]
    assert len(calls) == 1


def test_other_content_is_another_cell(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    assert cache.get_or_compute({"a": 1}, lambda: 1).value != cache.get_or_compute({"a": 2}, lambda: 2).value


def test_first_and_second_reading_are_equal_to_the_bit(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    first = cache.get_or_compute({"a": 1}, lambda: [1 / 3, 2**-40, 1e300])
    assert cache.get_or_compute({"a": 1}, lambda: None) == first


def test_keys_keep_their_order(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    for _ in range(2):
        assert [*cache.get_or_compute({"a": 1}, lambda: {"late": 1, "early": 2}).value] == ["late", "early"]


def test_cell_cut_short_is_computed_again(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    cache.get_or_compute({"a": 1}, lambda: 1)
    (file,) = tmp_path.glob("??/*.json")
    file.write_text('{"value": 1, "sec')
    assert cache.get_or_compute({"a": 1}, lambda: 2).value == 2


def test_failed_work_leaves_no_cell(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute({"a": 1}, lambda: 1 // 0)
    assert cache.get_or_compute({"a": 1}, lambda: 3).value == 3


def test_not_a_number_is_refused_rather_than_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CellCache(ObjectStore.open(tmp_path.as_uri())).get_or_compute({"a": 1}, lambda: float("nan"))


def test_old_cells_are_forgotten(tmp_path):
    cache = CellCache(ObjectStore.open(tmp_path.as_uri()))
    for i in range(3):
        cache.get_or_compute({"a": i}, lambda: 1)
    old, *_ = tmp_path.glob("??/*.json")
    os.utime(old, (0, 0))
    assert cache.remove_old() == 1
    assert len(list(tmp_path.glob("??/*.json"))) == 2
