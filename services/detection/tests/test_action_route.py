"""`POST /v1/actions` as people use it: forms of features, what is found, what is drawn, each mistake."""

import base64
import io
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fovea.api.actions import ActionsIn, ActionsOut
from services.detection.models.bmn import BmnActionDetector, BmnCsaActionDetector
from services.detection.servables.action_detector import _list_proposals, resample
from shared.registry.weights import read_weights
from tests.contract.sameness import differences
from tests.harness.models import answered, client_of, problem


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


@pytest.mark.parametrize("form", ["multipart", "raw", "json rows", "json base64", "npy and fields"])
def test_every_form_of_features_gives_the_same_answer(client, held, form):
    raw, rows = npz(held, 0), {name: getattr(held, name)[0].tolist() for name in ("features", "semantics")}
    rows["class_scores"] = held.scores[0].tolist()
    query = "/v1/actions?model=bmn-csa&duration=32"

    def npy(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    fields = {"features": held.features, "semantics": held.semantics, "class_scores": held.scores}
    body = {"model": "bmn-csa", "duration": 32}
    sent = {
        "multipart": lambda: client.post(query, files={"features": raw}),
        "raw": lambda: client.post(query, content=raw, headers={"content-type": "application/octet-stream"}),
        "json rows": lambda: client.post("/v1/actions", json={**body, **rows}),
        "json base64": lambda: client.post("/v1/actions", json={**body, "features": base64.b64encode(raw).decode()}),
        "npy and fields": lambda: client.post(query, files={name: npy(one[0]) for name, one in fields.items()}),
    }
    wanted = answered(client.post(query, files={"features": raw}), ActionsOut)
    assert differences(wanted, answered(sent[form](), ActionsOut)) == []
    assert wanted.proposals[0].label is not None


def test_times_follow_duration_or_fps(client, held):
    rows = held.features[0].tolist()
    seconds = [
        answered(client.post("/v1/actions", json={"model": "bmn", "features": rows, **more}), ActionsOut)
        for more in ({"duration": 64}, {"fps": 0.5}, {})
    ]
    assert [answer.duration for answer in seconds] == [64, 64, 32]
    assert seconds[0].proposals == seconds[1].proposals
    assert seconds[2].notes
    assert seconds[0].proposals[0].end == pytest.approx(2 * seconds[2].proposals[0].end)


def test_a_score_that_was_shown_asks_for_its_proposal_again():
    request = ActionsIn.model_construct(min_score=0.123457, max_proposals=10, class_names=())
    video = SimpleNamespace(request=request, duration=10.0, classes=None)
    kept = (np.array([0.0, 0.2]), np.array([0.1, 0.5]), np.array([0.1234567, 0.1234561]))
    assert [proposal.score for proposal in _list_proposals(kept, cast("Any", video))] == [0.123457]


def test_class_scores_of_the_whole_video_name_proposals(client, held):
    body = {
        "model": "bmn", "features": held.features[1].tolist(), "class_scores": [0.2, 0.7],
        "class_names": ["run", "jump"], "labels": 2,
    }  # fmt: skip
    found = answered(client.post("/v1/actions", json=body), ActionsOut).proposals
    assert found[0].label == "jump"
    assert {p.label for p in found} == {"run", "jump"}


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


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "features"),
        ({"features": [[1, 2], [3]]}, 422, "features"),
        ({"features": [[1.0] * 32] * 63}, 422, "features"),
        ({"features": [[1.0] * 64] * 32}, 422, "features"),
        ({"features": "aGVsbG8="}, 415, "features"),
        ({"features": "***"}, 400, "features"),
        ({"features": [[1.0] * 32] * 64, "model": "bmn-csa"}, 422, "semantics"),
        ({"features": [[1.0] * 32] * 64, "model": "bmn-csa", "semantics": [[1.0] * 31] * 8}, 422, "semantics"),
        ({"features": [[1.0] * 32] * 64, "duration": 0}, 422, "duration"),
        ({"features": [[1.0] * 32] * 64, "duration": 3, "fps": 2}, 422, "fps"),
        ({"features": [[1.0] * 32] * 64, "alpha": 0}, 422, "alpha"),
        ({"features": [[1.0] * 32] * 64, "class_scores": [1, 2], "class_names": ["a"]}, 422, "class_names"),
        ({"features": [[1.0] * 32] * 64, "speed": 2}, 422, "speed"),
    ],
)
def test_mistakes_are_named(client, body, status, field):
    problem(client.post("/v1/actions", json={"model": "bmn", **body}), status, field)


def test_swapped_axes_are_pointed_out(client):
    found = problem(client.post("/v1/actions", json={"model": "bmn", "features": [[1.0] * 64] * 32}), 422, "features")
    assert "swapped" in found["detail"]


def test_any_number_of_steps_is_resampled(client, held):
    once = answered(
        client.post("/v1/actions", json={"model": "bmn", "features": held.features[4].tolist()}), ActionsOut
    )
    thrice = np.repeat(held.features[4], 3, axis=1)
    again = answered(
        client.post("/v1/actions", json={"model": "bmn", "features": thrice.tolist(), "duration": 32}), ActionsOut
    )
    assert "96 steps resampled" in again.notes[0]
    assert again.proposals[0].start == once.proposals[0].start
    assert again.proposals[0].score == pytest.approx(once.proposals[0].score, abs=1e-4)
    single = answered(client.post("/v1/actions", json={"model": "bmn", "features": [[1.0]] * 64}), ActionsOut)
    assert single.proposals


def test_resampling_keeps_the_mean_and_straight_lines():
    matrix = np.random.default_rng(0).standard_normal((3, 77)).astype(np.float32)
    np.testing.assert_allclose(resample(matrix, 32).mean(1), matrix.mean(1), atol=1e-5)
    line = np.arange(8, dtype=np.float32)[None]
    np.testing.assert_allclose(resample(line, 16)[0, 1:-1], (np.arange(1, 15) + 0.5) / 2 - 0.5, atol=1e-6)
    assert resample(matrix, 77) is matrix


def test_the_card_repeats_what_attention_was_worth_with_each_seed():
    weights = [
        read_weights(kind.folder / f"{kind.weights}.safetensors") for kind in (BmnActionDetector, BmnCsaActionDetector)
    ]
    plain, attended = (one.manifest.notes["seeds"] for one in weights)
    gains = [attended[seed]["average_map"] - plain[seed]["average_map"] for seed in "123"]
    assert any(f"{np.mean(gains):+.3f}" in note for note in BmnCsaActionDetector.card.notes)
    assert not any({"sample_mask", "sampling"} & set(one.arrays) for one in weights)
