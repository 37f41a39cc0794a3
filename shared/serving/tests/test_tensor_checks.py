"""Tensors are checked by name, joined by signature and split without mixing rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from shared.serving.oip import tensors

SPECS = (TensorSpec(name="a", datatype="FP32", shape=(-1, 2)), TensorSpec(name="b", datatype="BYTES", shape=(-1,)))


def good():
    return {"a": np.zeros((2, 2), np.float32), "b": np.array([b"x", b"y"], object)}


def test_exactly_the_stated_tensors_pass_and_batch_sizes_that_differ_are_named():
    tensors.check_feeds(good(), SPECS)
    with pytest.raises(InvalidOption, match="a 2, b 1"):
        tensors.check_feeds({**good(), "b": np.array([b"x"], object)}, SPECS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"a": None}, "a"), ({"z": np.zeros(1)}, "z"), ({"a": np.zeros((2, 2), np.float64)}, "a"),
        ({"a": np.zeros((2, 3), np.float32)}, "a"), ({"a": np.zeros(2, np.float32)}, "a"),
        ({"a": np.zeros((0, 2), np.float32)}, "a"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(changes, field):
    feeds = {name: array for name, array in {**good(), **changes}.items() if array is not None}
    with pytest.raises(InvalidOption) as caught:
        tensors.check_feeds(feeds, SPECS)
    assert caught.value.field == field


def test_signature_ignores_the_batch_axis_and_the_order_of_names():
    one, many = np.zeros((1, 2), np.float32), np.zeros((5, 2), np.float32)
    assert tensors.signature({"a": one, "b": many}) == tensors.signature({"b": one, "a": many})
    assert tensors.signature({"a": one}) != tensors.signature({"a": one.astype(np.float64)})
    assert tensors.signature({"a": one}) != tensors.signature({"a": one[:, :1]})


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_split_undoes_join(sizes):
    requests = [{"a": np.full((size, 2), place, np.float32)} for place, size in enumerate(sizes)]
    parts = tensors.split_rows(tensors.join_rows(requests), [tensors.count_rows(feeds) for feeds in requests])
    for request, part in zip(requests, parts, strict=True):
        np.testing.assert_array_equal(part["a"], request["a"])


def test_output_without_one_row_per_input_row_can_t_be_split():
    with pytest.raises(ValueError, match="3 rows"):
        tensors.split_rows({"y": np.zeros((1, 2))}, [1, 2])
