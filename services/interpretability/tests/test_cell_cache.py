"""Cells are computed once, whatever happens to the process in between."""

import os

import pytest

from services.interpretability.core.cell_cache import CellCache
from shared.storage import ObjectStore


@pytest.fixture
def cache(tmp_path):
    return CellCache(ObjectStore.open(tmp_path.as_uri()))


@pytest.mark.parametrize("value", [[0.1, None], [1 / 3, 2**-40, 1e300], {"late": 1, "early": 2}])
def test_cell_is_computed_once_and_read_to_the_bit_by_the_next_process(tmp_path, cache, value):
    first = cache.get_or_compute({"a": 1}, lambda: value)
    assert (first.value, list(first.value)) == (value, list(value))
    again = CellCache(ObjectStore.open(tmp_path.as_uri())).get_or_compute({"a": 1}, lambda: 1 // 0)
    assert (again, list(again.value)) == (first, list(value)), "keys keep their order"
    assert cache.get_or_compute({"a": 2}, lambda: 2).value == 2, "other content is another cell"


def test_cell_cut_short_is_computed_again(tmp_path, cache):
    cache.get_or_compute({"a": 1}, lambda: 1)
    (file,) = tmp_path.glob("??/*.json")
    file.write_text('{"value": 1, "sec')
    assert cache.get_or_compute({"a": 1}, lambda: 2).value == 2


def test_failed_work_leaves_no_cell(cache):
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute({"a": 1}, lambda: 1 // 0)
    assert cache.get_or_compute({"a": 1}, lambda: 3).value == 3


def test_not_a_number_is_refused_rather_than_written(cache):
    with pytest.raises(ValueError, match="JSON"):
        cache.get_or_compute({"a": 1}, lambda: float("nan"))


def test_old_cells_are_forgotten(tmp_path, cache):
    for i in range(3):
        cache.get_or_compute({"a": i}, lambda: 1)
    old, *_ = tmp_path.glob("??/*.json")
    os.utime(old, (0, 0))
    assert (cache.remove_old(), len(list(tmp_path.glob("??/*.json")))) == (1, 2)
