"""Matrices that callers send: what is read, and what is refused before it costs anything."""

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from fovea.api.actions import ActionsIn
from fovea.errors import FoveaError, InvalidOption, Malformed, TooLarge, UnsupportedMedia
from services.detection.segments.npy_inputs import MAX_NUMBERS, read_matrices


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


MATRIX = np.arange(12, dtype=np.float64).reshape(3, 4)


@pytest.mark.parametrize(
    "array", [MATRIX, np.asfortranarray(MATRIX), MATRIX.astype("int16"), MATRIX.astype(">f4"), MATRIX.astype("f2")]
)
def test_npy_of_any_number_and_order_is_read(array):
    found = read_matrices(npy(array), "features")
    np.testing.assert_array_equal(found["features"], MATRIX)
    assert found["features"].dtype == np.float32


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_its_arrays_by_name(save):
    file = io.BytesIO()
    save(file, features=MATRIX, semantics=MATRIX[:2])
    found = read_matrices(file.getvalue(), "features")
    assert {name: array.shape for name, array in found.items()} == {"features": (3, 4), "semantics": (2, 4)}


def test_rows_of_numbers_are_a_matrix():
    assert read_matrices(((1.0, 2.0), (3.0, 4.0)), "features")["features"].tolist() == [[1, 2], [3, 4]]


def _archive(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


REFUSED: dict[str, tuple[Any, type[FoveaError]]] = {
    "not an array": (b"hello", UnsupportedMedia),
    "pickled objects": (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), UnsupportedMedia),
    "a bare pickle": (pickle.dumps([1, 2]), UnsupportedMedia),
    "text": (npy(np.array(["a", "b"])), UnsupportedMedia),
    "complex numbers": (npy(np.ones((2, 2), complex)), UnsupportedMedia),
    "three axes": (npy(np.ones((2, 2, 2))), InvalidOption),
    "nothing in it": (npy(np.ones((0, 4))), InvalidOption),
    "not a number": (npy(np.array([[1.0, np.nan]])), InvalidOption),
    "cut short": (npy(MATRIX)[:-8], Malformed),
    "a broken header": (b"\x93NUMPY\x01\x00\x10\x00{'descr': oh no", Malformed),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(40), Malformed),
    "a terabyte by its header": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
        TooLarge,
    ),
    "a negative length": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2), }"), Malformed),
    "a terabyte inside of an archive": (
        _archive(features=header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }")),
        TooLarge,
    ),
    "an archive of nothing": (_archive(), UnsupportedMedia),
    "a broken archive": (b"PK\x03\x04" + bytes(100), Malformed),
    "an archive of many": (_archive(**{f"a{i}": npy(MATRIX) for i in range(30)}), Malformed),
    "ragged rows": (((1.0, 2.0), (3.0,)), InvalidOption),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_is_refused(name):
    given, error = REFUSED[name]
    with pytest.raises(error) as caught:
        read_matrices(given, "features")
    assert caught.value.status < 500


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_an_archive_of_broken_bytes_is_refused(kind):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("a.npy", npy(MATRIX))
    data = file.getvalue()
    for at in range(35, len(data) - 22, 5):
        for piece in (b"\xff" * 4, b"\0" * 4):
            try:
                read_matrices(data[:at] + piece + data[at + 4 :], "features")
            except FoveaError as error:
                assert error.status < 500  # noqa: PT017  # some edits leave it readable


@pytest.mark.parametrize("text", ["{'descr': '<f4', 'shape': (1,", "(" * 99, '"' * 3, "{'descr': [], 'shape': 1}"])
def test_headers_that_are_no_python_are_refused(text):
    with pytest.raises(FoveaError) as caught:
        read_matrices(header(text), "features")
    assert caught.value.status == 400


def test_a_name_in_an_archive_that_is_no_text_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ö.npy", npy(MATRIX))
    with pytest.raises(Malformed):
        read_matrices(file.getvalue().replace("ö".encode(), b"\xff\xff"), "features")


def test_a_bomb_in_an_archive_is_not_unpacked():
    """The header says two numbers: the gigabyte behind it is never read."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", npy(np.ones((1, 2), np.float32)) + bytes(50_000_000))
    assert read_matrices(file.getvalue(), "features")["features"].tolist() == [[1, 1]]


def test_rows_beyond_the_limit_are_refused():
    with pytest.raises(TooLarge):
        read_matrices(npy(np.ones((2, MAX_NUMBERS // 2 + 1), np.int8)), "features")


def test_the_wire_type_takes_base64_rows_and_lists_of_one():
    import base64

    raw = npy(MATRIX)
    text = base64.b64encode(raw).decode()
    for given in (raw, text, [raw], [text], f"data:application/octet-stream;base64,{text}"):
        assert ActionsIn(features=given).features == raw
    request = ActionsIn(features=[[1, 2], [3, 4]])
    assert ActionsIn.model_validate_json(request.model_dump_json()) == request
    assert ActionsIn.model_validate_json(ActionsIn(features=raw).model_dump_json()).features == raw
