"""One tensor between numpy and the wire: round trips over all datatypes, views instead of copies, and every refusal."""

from typing import get_args

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.tensors import Datatype
from fovea.errors import Fault, Malformed, TooLarge
from shared.rpc import tensors
from shared.rpc.oip_json import align

FLOATS = ("FP16", "FP32", "FP64", "BF16")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    datatype, shape = draw(st.sampled_from(sorted(tensors.DTYPES))), draw(SHAPES)
    if datatype == "BYTES":
        return draw(hnp.arrays(object, shape, elements=st.binary(max_size=20), fill=st.nothing()))
    if datatype == "BF16":
        wide = draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
        return wide.astype(ml_dtypes.bfloat16)
    finite = {"allow_nan": False, "allow_infinity": False} if datatype in FLOATS else {}
    return draw(hnp.arrays(tensors.DTYPES[datatype], shape, elements=finite or None))


def test_the_codec_knows_every_datatype_of_the_contract():
    assert set(tensors.DTYPES) == set(get_args(Datatype))


@given(arrays())
def test_raw_bytes_come_back_as_the_same_array(array):
    datatype = tensors.datatype_of("t", array)
    back = tensors.from_raw("t", datatype, array.shape, tensors.to_raw("t", array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(arrays())
def test_values_come_back_as_the_same_array(array):
    datatype = tensors.datatype_of("t", array)
    values = array.reshape(-1).tolist() if datatype in {"BYTES", "BF16"} else tensors.to_values("t", array)
    if datatype == "BF16":
        values = tensors.to_values("t", array)
    np.testing.assert_array_equal(tensors.from_values("t", datatype, array.shape, values), array)


@given(array=arrays(), data=st.data())
def test_a_wrong_number_of_bytes_is_refused(array, data):
    raw = bytes(tensors.to_raw("t", array))
    cut = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    for wrong in (raw[:cut], raw + b"\0"):
        if wrong != raw:
            with pytest.raises(Malformed, match="'t'"):
                tensors.from_raw("t", tensors.datatype_of("t", array), array.shape, wrong)


@given(datatype=st.sampled_from(sorted(tensors.DTYPES)), shape=st.lists(st.integers(0, 5), max_size=4), raw=st.binary())
def test_random_bytes_are_an_array_or_a_malformed(datatype, shape, raw):
    refused: Malformed | None = None
    try:
        array = tensors.from_raw("t", datatype, shape, raw)
    except Malformed as error:
        refused = error
    assert refused.field == "t" if refused else list(array.shape) == shape


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        ("FP32", [-1]), ("FP32", [2, -3]), ("FP32", [2**31]), ("FP32", [2**63, 2]),
        ("UINT8", [2**30, 2**30, 2**30]), ("UINT8", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]), ("FP32", [1] * 33),
        ("FP8", [1]), ("fp32", [1]), ("", []),
    ],
)  # fmt: skip
def test_impossible_tensors_are_refused_before_anything_is_allocated(datatype, shape):
    with pytest.raises(Malformed, match="Tensor 'weights'") as caught:
        tensors.element_count("weights", datatype, shape)
    assert caught.value.field == "weights"


def test_text_elements_without_letters_need_their_lengths_only_and_too_many_are_too_large():
    with pytest.raises(TooLarge, match="1048577") as caught:
        tensors.from_raw("t", "BYTES", [2**20 + 1], bytes(4 * 2**20 + 4))
    assert caught.value.field == "t"
    assert tensors.from_raw("t", "BYTES", [2], bytes(8)).tolist() == [b"", b""]
    assert tensors.from_raw("t", "BYTES", [0], b"").tolist() == []


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_unless_let_through(datatype, value):
    raw = np.array([0.0, value, 1.0], tensors.DTYPES[datatype]).tobytes()
    with pytest.raises(Malformed, match=r"'t' of .* NaN, infinite"):
        tensors.from_raw("t", datatype, [3], raw)
    np.testing.assert_equal(tensors.from_raw("t", datatype, [3], raw, finite=False).astype(float), [0.0, value, 1.0])


@pytest.mark.parametrize("datatype", FLOATS)
def test_the_largest_and_smallest_finite_values_pass(datatype):
    limits = ml_dtypes.finfo(tensors.DTYPES[datatype])
    array = np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], tensors.DTYPES[datatype])
    np.testing.assert_array_equal(tensors.from_raw("t", datatype, [4], array.tobytes()), array)


def test_a_bool_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(Malformed, match="other than 0 and 1"):
        tensors.from_raw("t", "BOOL", [3], b"\0\1\2")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x05\0\0\0abc",  # longer than what is left
        b"\xff\xff\xff\xff",  # far longer
        b"\x01\0\0",  # no whole length
        b"\x01\0\0\0ab",  # something is left over
        b"",
    ],
)
def test_bytes_that_overrun_or_underrun_their_tensor_are_refused(raw):
    with pytest.raises(Malformed, match="don't hold 1 length-prefixed") as caught:
        tensors.from_raw("t", "BYTES", [1], raw)
    assert caught.value.field == "t"


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT32", [1.5]), ("INT32", [1.0]), ("INT32", [True]), ("INT32", ["1"]), ("INT32", [None]),
        ("INT32", [[1]]), ("UINT8", [256]), ("UINT8", [-1]), ("UINT64", [2**64]), ("INT64", [2**63]),
        ("INT8", [10**4000]), ("BOOL", [1]), ("BOOL", ["true"]), ("FP32", [True]), ("FP32", ["1.0"]),
        ("FP32", [1e39]), ("FP16", [65520.0]), ("BF16", [1e39]), ("FP64", [10**4000]), ("BF16", [10**4000]),
        ("BYTES", [1]), ("FP32", []), ("FP32", [1.0, 2.0]),
    ],
)  # fmt: skip
def test_values_of_another_kind_range_or_number_are_refused(datatype, values):
    with pytest.raises(Malformed, match=r"^Tensor 't'") as caught:
        tensors.from_values("t", datatype, [1], values)
    assert caught.value.field == "t"


def test_raw_tensors_are_views_of_the_bytes_that_they_came_in_or_aligned_copies():
    body = align([b"header!", np.arange(6, dtype="<f4").tobytes()], 7)
    array = tensors.from_raw("t", "FP32", [2, 3], body[7:])
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert array.flags.aligned
    assert array.flags.writeable
    assert array.ctypes.data % 64 == 0
    body = align([b"header!", np.arange(6, dtype="<f8").tobytes()], None)
    array = tensors.from_raw("t", "FP64", [6], body[7:])
    assert array.flags.aligned
    assert not np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(tensors.to_raw("t", array), np.uint8), array)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 300))
def test_aligning_keeps_the_bytes(chunks, header_length):
    whole = b"".join(chunks)
    body = align(chunks, header_length)
    assert bytes(body) == whole
    if whole:
        assert (np.frombuffer(body, np.uint8).ctypes.data + header_length) % 64 == 0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        np.arange(12, dtype=">i2").reshape(3, 4),
    ],
    ids=["big-endian", "transposed", "strided", "big-endian-int"],
)
def test_arrays_of_any_layout_are_written_little_endian_and_row_major(array):
    datatype = tensors.datatype_of("t", array)
    back = tensors.from_raw("t", datatype, array.shape, tensors.to_raw("t", array))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(tensors.to_values("t", array), array.reshape(-1))


def test_text_arrays_of_fixed_width_are_bytes():
    for array in (np.array(["a", "äö"]), np.array([b"a", b"\xc3\xa4\xc3\xb6"]), np.array(["a", "äö"], object)):
        assert tensors.from_raw("t", "BYTES", [2], tensors.to_raw("t", array)).tolist() == [b"a", "äö".encode()]
        assert tensors.to_values("t", array) == ["a", "äö"]


@pytest.mark.parametrize(
    "array", [np.array([1j]), np.array(["2026-01-01"], "M8[D]"), np.array([object()]), np.array([3], object)]
)
def test_what_no_datatype_fits_is_a_fault_of_the_model(array):
    for write in (tensors.to_raw, tensors.to_values):
        with pytest.raises(Fault, match=r"^Tensor 't'") as caught:
            write("t", array)
        assert caught.value.field == "t"


@pytest.mark.parametrize("array", [np.array([np.nan], np.float16), np.array([np.inf]), np.array([b"\xff"], object)])
def test_json_says_which_output_it_cannot_carry_and_what_to_do(array):
    with pytest.raises(Malformed, match="Tensor 'mask'") as caught:
        tensors.to_values("mask", array)
    assert "binary" in str(caught.value.hint)


def test_feeds_are_refused_by_name_where_they_are_not_finite():
    tensors.require_finite({"a": np.float32([1, 2]), "b": np.array([b"x"], object), "c": np.float16([3])})
    for datatype in FLOATS:
        with pytest.raises(Malformed, match=rf"^Tensor 'b' of {datatype} holds NaN") as caught:
            tensors.require_finite({"a": np.float32([1]), "b": np.array([np.inf], tensors.DTYPES[datatype])})
        assert caught.value.field == "b"


def test_refusals_name_the_tensor_and_say_what_to_do():
    with pytest.raises(Malformed) as unknown:
        tensors.element_count("t", "FP8", [1])
    assert (unknown.value.field, unknown.value.hint) == ("t", f"Known are {', '.join(tensors.DTYPES)}.")
    numbers = (np.float32([np.nan]), np.array([np.nan], np.float16), np.array([np.inf]))
    for array, told in ((np.array([b"\xff"], object), "not UTF-8"), *((each, "NaN or infinite") for each in numbers)):
        with pytest.raises(Malformed, match=rf"^Tensor 't' holds .*{told}") as refused:
            tensors.to_values("t", array)
        assert (refused.value.field, refused.value.hint) == ("t", "Ask for it as binary data.")
