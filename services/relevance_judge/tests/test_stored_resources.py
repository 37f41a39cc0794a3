"""Calibrations are kept in versions that never change, and judges name the one they used."""

import threading
from typing import Any

import pytest

from fovea.errors import InvalidOption, NotFound
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.metrics.agreement import krippendorff_alpha
from services.relevance_judge.metrics.calibration import Calibration
from services.relevance_judge.prompt_template import get_template
from services.relevance_judge.storage.versioned_store import VersionedStore
from services.relevance_judge.tests.conftest import serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.storage import ObjectStore

DIGITS = {"0": -3.0, "1": -2.0, "2": -0.5, "3": -1.5}
TRAINING: dict[str, Any] = {
    "signals": [0.1, 0.9, 1.9, 2.9] * 6, "grades": [0, 1, 2, 3] * 6, "queries": [str(n // 4) for n in range(24)],
    "pairs": [f"{n // 4} p{n}" for n in range(24)],
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    model = FakeModel(first=DIGITS)
    kinds = {kind.card.name: answered_by(model, kind) for kind in (PromptedGrade, LogOdds, QueryLikelihood)}
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made


def test_a_calibration_is_kept_in_versions_and_named_by_the_judgement_that_used_it(client):
    owner = {"name": "smol.digits", "model": "fake", "template": f"digits@{get_template('digits').digest}"}
    first = client.post("/v1/judge/calibrations", json={**TRAINING, **owner}).json()
    second = client.post("/v1/judge/calibrations", json={**TRAINING, **owner, "how": "kappa"}).json()
    assert [first["version"], second["version"]] == [1, 2]
    assert client.get("/v1/judge/calibrations/smol.digits@1").json() == first
    assert client.get("/v1/judge/calibrations/smol.digits").json() == second
    (row,) = [row for row in client.get("/v1/judge/calibrations").json() if row["name"] == "smol.digits"]
    assert (row["versions"], first["calibration"]["training"]) == ([1, 2], TRAINING["pairs"])
    body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": "smol.digits@1"}
    answer = client.post("/v1/judge", json=body).json()
    assert answer["results"][0]["calibration"] == f"smol.digits@1:{first['digest']}"
    assert answer["results"][0]["grade"] in range(4)


def test_a_kept_calibration_has_a_model_and_its_warnings_reach_every_answer(client):
    for owner in ({"name": "other-model", "model": "gpt"}, {"name": "other-template", "template": "yes-no@0"}):
        client.post("/v1/judge/calibrations", json={**TRAINING, **owner})
        body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": owner["name"]}
        answer = client.post("/v1/judge", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "calibration")
    few = {name: values[:4] for name, values in TRAINING.items()}
    client.post("/v1/judge/calibrations", json={**few, "name": "few"})
    body = {"model": "log-odds", "query": "q", "passages": ["p"], "calibration": "few"}
    assert len(client.post("/v1/judge", json=body).json()["notes"]) == 2


@pytest.mark.parametrize("name", ["nope", "smol.digits@99", "..%2fx"])
def test_what_is_not_kept_is_not_found(client, name):
    assert client.get(f"/v1/judge/calibrations/{name}").status_code == 404


@pytest.mark.parametrize(
    "body", [{**TRAINING, "name": "Not A Name"}, {**TRAINING, "pairs": ["one"]}, {**TRAINING, "name": "../up"}]
)
def test_a_calibration_that_makes_no_sense_is_refused(client, body):
    assert client.post("/v1/judge/calibrations", json=body).status_code == 422


def test_versions_are_never_written_over_by_writers_at_the_same_time(tmp_path):
    store, versions = VersionedStore(ObjectStore.open(tmp_path.as_uri()), "thing"), []
    threads = [threading.Thread(target=lambda n=n: versions.append(store.add("x", {"n": n}))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 13))
    assert (sorted(store.get(f"x@{v}")[2]["n"] for v in versions), store.list_names()) == (list(range(12)), ["x"])
    with pytest.raises(NotFound, match="versions"):
        store.get("x@13")


def test_a_standard_signal_needs_mean_and_spread():
    cuts = Calibration(cuts=(0, 1, 2), how="quantile", pairs=1, queries=1)
    with pytest.raises(InvalidOption, match="mean and spread"):
        cuts.standardise(1.0)
    assert cuts.model_copy(update={"mean": 1.0, "spread": 2.0}).standardise(5.0) == 2.0


def test_alpha_of_all_released_sets_is_the_oracles(released, golden):
    told = golden("llmjudge/agreement_with_one_judge.json")
    names = [told["reference"], *told["judges"]]
    pairs = list(released(names[0]))
    ratings = [[min(max(released(name)[pair], 0), 3) for pair in pairs] for name in names]
    for level, expected in told["alpha_all_33"].items():
        assert krippendorff_alpha(ratings, level=level) == pytest.approx(expected, abs=1e-9)


def test_the_backend_is_told_without_its_secrets_and_probed_on_demand(client):
    (plain,) = client.get("/v1/judge/backends").json()
    assert (plain["reachable"], plain["models"], plain["answers_logprobs"]) == (True, ["fake", "other"], None)
    (probed,) = client.get("/v1/judge/backends?probe=true").json()
    assert (probed["answers_logprobs"], probed["prompt_logprobs"]) == (True, True)


def test_an_endpoint_that_is_away_is_told_as_such(tmp_path):
    away = "http://me:secret@127.0.0.1:9/"
    with serve_judges(tmp_path, {"prompted-grade": PromptedGrade}, judge_base_url=away) as made:
        told = made.get("/v1/judge/backends")
    (found,) = told.json()
    assert (found["reachable"], found["base_url"]) == (False, "http://127.0.0.1:9/")
    assert "reached" in found["trouble"]
    assert "secret" not in told.text
