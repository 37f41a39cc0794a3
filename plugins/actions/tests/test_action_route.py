"""Videos as arrays: their forms, the route of actions, and the command with the files that it reads from the schema."""

import base64
import io
import pickle
import zipfile
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fovea.errors import FoveaError, InvalidOption, Malformed, TooLarge, UnsupportedMedia
from fovea_actions.action_detector import _list_proposals, resample
from fovea_actions.models.bmn import BmnActionDetector, BmnCsaActionDetector
from fovea_actions.schema import ActionsIn, ActionsOut
from fovea_actions.segments.npy_inputs import MAX_NUMBERS, read_matrices
from tests.contract.sameness import differences
from tests.harness.models import answered, client_of, problem


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body


MATRIX = np.arange(12, dtype=np.float64).reshape(3, 4)


@pytest.mark.parametrize("array", [MATRIX, np.asfortranarray(MATRIX), *map(MATRIX.astype, ("int16", ">f4", "f2"))])
def test_npy_of_any_number_and_order_is_read(array):
    found = read_matrices(npy(array), "features")
    np.testing.assert_array_equal(found["features"], MATRIX)
    assert found["features"].dtype == np.float32
    assert read_matrices(((1.0, 2.0), (3.0, 4.0)), "features")["features"].tolist() == [[1, 2], [3, 4]]


def _archive(kind: int = zipfile.ZIP_DEFLATED, /, **entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


TERABYTE = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }")
NO_PYTHON = ["{'descr': '<f4', 'shape': (1,", "(" * 99, '"' * 3, "{'descr': [], 'shape': 1}"]
REFUSED: dict[str, tuple[Any, type[FoveaError]]] = {
    "not an array": (b"hello", UnsupportedMedia),
    "pickled objects": (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), UnsupportedMedia),
    "a bare pickle": (pickle.dumps([1, 2]), UnsupportedMedia), "text": (npy(np.array(["a", "b"])), UnsupportedMedia),
    "complex numbers": (npy(np.ones((2, 2), complex)), UnsupportedMedia),
    "three axes": (npy(np.ones((2, 2, 2))), InvalidOption), "nothing in it": (npy(np.ones((0, 4))), InvalidOption),
    "not a number": (npy(np.array([[1.0, np.nan]])), InvalidOption), "cut short": (npy(MATRIX)[:-8], Malformed),
    "a broken header": (b"\x93NUMPY\x01\x00\x10\x00{'descr': oh no", Malformed),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(40), Malformed),
    "a terabyte by its header": (TERABYTE, TooLarge),
    "a negative length": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2), }"), Malformed),
    "a terabyte inside of an archive": (_archive(features=TERABYTE), TooLarge),
    "an archive of nothing": (_archive(), UnsupportedMedia),
    "a broken archive": (b"PK\x03\x04" + bytes(100), Malformed),
    "an archive of many": (_archive(**{f"a{i}": npy(MATRIX) for i in range(30)}), Malformed),
    "ragged rows": (((1.0, 2.0), (3.0,)), InvalidOption),
    **{f"a header that is no Python, {n}": (header(text), Malformed) for n, text in enumerate(NO_PYTHON)},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_is_refused(name):
    given, error = REFUSED[name]
    with pytest.raises(error, check=lambda e: e.status < 500):
        read_matrices(given, "features")


def test_names_that_are_no_text_bombs_and_rows_beyond_the_limit_are_refused():
    with pytest.raises(Malformed):
        read_matrices(_archive(ö=npy(MATRIX)).replace("ö".encode(), b"\xff\xff"), "features")
    # The header says two numbers: the gigabyte behind it is never read.
    bomb = _archive(features=npy(np.ones((1, 2), np.float32)) + bytes(50_000_000))
    assert read_matrices(bomb, "features")["features"].tolist() == [[1, 1]]
    with pytest.raises(TooLarge):
        read_matrices(npy(np.ones((2, MAX_NUMBERS // 2 + 1), np.int8)), "features")
    zeros = npy(np.zeros((2, MAX_NUMBERS // 4), np.int8))
    with pytest.raises(TooLarge, match="together"):
        read_matrices(_archive(**{f"a{i}": zeros for i in range(3)}), "features")  # 30 kB of 16 times 64 MB


def test_the_wire_type_takes_base64_rows_and_lists_of_one():
    raw = npy(MATRIX)
    text = base64.b64encode(raw).decode()
    for given in (raw, text, [raw], [text], f"data:application/octet-stream;base64,{text}"):
        assert ActionsIn(features=given).features == raw
    request = ActionsIn(features=[[1, 2], [3, 4]])
    assert ActionsIn.model_validate_json(request.model_dump_json()) == request
    assert ActionsIn.model_validate_json(ActionsIn(features=raw).model_dump_json()).features == raw


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"bmn": BmnActionDetector, "bmn-csa": BmnCsaActionDetector}
    with client_of(tmp_path_factory.mktemp("fovea"), "detection", kinds) as made:
        yield made


@pytest.fixture(scope="module")
def held():
    rng = np.random.default_rng(3)
    shapes = {"features": (5, 64, 32), "semantics": (5, 8, 32), "scores": (5, 8, 32)}
    return SimpleNamespace(**{name: rng.random(shape, np.float32) for name, shape in shapes.items()})


def npz(held: SimpleNamespace, video: int) -> bytes:
    file = io.BytesIO()
    np.savez(file, features=held.features[video], semantics=held.semantics[video], class_scores=held.scores[video])
    return file.getvalue()


@pytest.mark.parametrize("form", ["raw", "json rows", "json base64", "npy and fields"])
def test_every_form_of_features_gives_the_same_answer(client, held, form):
    raw, query, body = npz(held, 0), "/v1/actions?model=bmn-csa&duration=32", {"model": "bmn-csa", "duration": 32}
    arrays = {"features": held.features[0], "semantics": held.semantics[0], "class_scores": held.scores[0]}
    rows = {name: array.tolist() for name, array in arrays.items()}
    sent = {
        "raw": lambda: client.post(query, content=raw, headers={"content-type": "application/octet-stream"}),
        "json rows": lambda: client.post("/v1/actions", json={**body, **rows}),
        "json base64": lambda: client.post("/v1/actions", json={**body, "features": base64.b64encode(raw).decode()}),
        "npy and fields": lambda: client.post(query, files={name: npy(array) for name, array in arrays.items()}),
    }
    wanted = answered(client.post(query, files={"features": raw}), ActionsOut)
    assert differences(wanted, answered(sent[form](), ActionsOut)) == []
    assert wanted.proposals[0].label is not None


def test_times_follow_duration_or_fps_what_has_no_effect_is_noted_and_a_shown_score_asks_again(client, held):
    rows = held.features[0].tolist()
    seconds = [
        answered(client.post("/v1/actions", json={"model": "bmn", "features": rows, **more}), ActionsOut)
        for more in ({"duration": 64}, {"fps": 0.5}, {})
    ]
    assert [answer.duration for answer in seconds] == [64, 64, 32]
    assert seconds[0].proposals == seconds[1].proposals
    assert seconds[2].notes
    assert seconds[0].proposals[0].end == pytest.approx(2 * seconds[2].proposals[0].end)
    idle = {"semantics": [[1.0] * 32] * 8}, {"class_names": ["a"]}
    for more, told in zip(idle, ("bmn does not look at semantics.", "class_names name"), strict=True):
        body = {"model": "bmn", "features": rows, "duration": 32, **more}
        assert answered(client.post("/v1/actions", json=body), ActionsOut).notes[0].startswith(told)
    request = ActionsIn.model_construct(min_score=0.123457, max_proposals=10, class_names=())
    video = SimpleNamespace(request=request, duration=10.0, classes=None)
    kept = (np.array([0.0, 0.2]), np.array([0.1, 0.5]), np.array([0.1234567, 0.1234561]))
    assert [proposal.score for proposal in _list_proposals(kept, cast("Any", video))] == [0.123457]


def test_challenge_form_curves_and_map(client, held):
    body = {
        "model": "bmn", "features": held.features[2].tolist(), "duration": 10, "video": "v_1",
        "include": ["curves", "confidence", "activitynet"],
    }  # fmt: skip
    answer = answered(client.post("/v1/actions", json=body), ActionsOut)
    assert len(answer.curves.start) == len(answer.curves.end) == answer.cells == 32
    confidence = np.array(answer.confidence)
    assert confidence.shape == (32, 32)
    assert not np.tril(confidence, -1).any()
    row = answer.activitynet["results"]["v_1"][0]
    assert row["segment"] == [answer.proposals[0].start, answer.proposals[0].end]
    assert row["score"] == answer.proposals[0].score
    picture = {**body, "include": [], "class_scores": [1], "class_names": ["two\nlines"]}
    assert client.post("/v1/actions", json=picture, headers={"accept": "image/png"}).status_code == 200


@pytest.mark.parametrize(("body", "status", "field"), [
    ({}, 422, "features"), ({"features": [[1, 2], [3]]}, 422, "features"),
    ({"features": [[1.0] * 32] * 63}, 422, "features"), ({"features": [[1.0] * 64] * 32}, 422, "features"),
    ({"features": "aGVsbG8="}, 415, "features"), ({"features": "***"}, 400, "features"),
    ({"features": [[1.0] * 32] * 64, "model": "bmn-csa"}, 422, "semantics"),
    ({"features": [[1.0] * 32] * 64, "model": "bmn-csa", "semantics": [[1.0] * 31] * 8}, 422, "semantics"),
    ({"features": [[1.0] * 32] * 64, "duration": 0}, 422, "duration"),
    ({"features": [[1.0] * 32] * 64, "duration": 3, "fps": 2}, 422, "fps"),
    ({"features": [[1.0] * 32] * 64, "fps": 1e-320}, 422, "fps"),
    ({"features": [[1.0] * 32] * 64, "class_scores": [1, 2], "class_names": ["a"]}, 422, "class_names"),
    ({"features": [[3e38, -3e38] * 16] * 64, "include": "curves"}, 422, "features"),
    ({"features": [[1.0] * 32] * 64, "class_scores": [1, 1e39]}, 422, "class_scores"),
    ({"features": [[1.0] * 32] * 64, "class_scores": [2, -1]}, 422, "class_scores"),
])  # fmt: skip
def test_mistakes_are_named(client, body, status, field):
    found = problem(client.post("/v1/actions", json={"model": "bmn", **body}), status, field)
    assert ("swapped" in found["detail"]) is (body.get("features") == [[1.0] * 64] * 32)


def test_any_number_of_steps_is_resampled_and_keeps_its_mean_and_straight_lines(client, held):
    once, thrice = held.features[4], np.repeat(held.features[4], 3, axis=1)
    bodies = ({"features": once.tolist()}, {"features": thrice.tolist(), "duration": 32}, {"features": [[1.0]] * 64})
    answers = [client.post("/v1/actions", json={"model": "bmn", **body}) for body in bodies]
    plain, again, single = (answered(one, ActionsOut) for one in answers)
    assert "96 steps resampled" in again.notes[0]
    assert again.proposals[0].start == plain.proposals[0].start
    assert again.proposals[0].score == pytest.approx(plain.proposals[0].score, abs=1e-4)
    assert single.proposals
    matrix = np.random.default_rng(0).standard_normal((3, 77)).astype(np.float32)
    np.testing.assert_allclose(resample(matrix, 32).mean(1), matrix.mean(1), atol=1e-5)
    line = np.arange(8, dtype=np.float32)[None]
    np.testing.assert_allclose(resample(line, 16)[0, 1:-1], (np.arange(1, 15) + 0.5) / 2 - 0.5, atol=1e-6)
    assert resample(matrix, 77) is matrix
