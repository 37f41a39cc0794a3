"""The routes: forms of an answer, refusals by name, kept reports and artefacts."""

import json

import pytest
import pytest_asyncio

from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.rendering.html_page import POLICY
from services.interpretability.tests.conftest import probing
from shared.registry import servables

TEXT = {"lm": "tiny", "text": "kqzwxm kqzwxm kqzwx"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    async with probing(tmp_path_factory.mktemp("data")) as asked:
        yield asked


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_forms_follow_accept_and_the_generic_route_takes_model(client):
    assert (await client.post("/v1/probe", json={"model": "logit-lens", **TEXT})).json()["title"] == "Logit lens"
    by_accept = await client.post("/v1/probe/sinks", json=TEXT, headers={"accept": "image/png"})
    by_body = await client.post("/v1/probe/sinks", json={**TEXT, "format": "png"})
    assert (by_accept.content, by_accept.headers["vary"]) == (by_body.content, "accept")
    assert by_body.content.startswith(b"\x89PNG")
    for form, media in (("html", "text/html"), ("svg", "image/svg+xml")):
        answer = await client.post("/v1/probe/attention", params={"format": form}, json=TEXT)
        assert answer.headers["content-type"].partition(";")[0] == media
        assert answer.headers.get("content-security-policy") == (POLICY if form == "html" else None)
    answer = await client.post("/v1/probe/sinks", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(("path", "body", "status", "field"), [
    ("sinks", {"lm": "tiny"}, 422, "text"), ("sinks", {**TEXT, "threshold": 3}, 422, "threshold"),
    ("sinks", {**TEXT, "lm": "gpt-7"}, 404, "lm"), ("sinks", {**TEXT, "format": "gif"}, 422, "format"),
    ("sinks", {**TEXT, "format": ["png"]}, 422, "format"),
    ("heads/plans", {"lm": "tiny", "kind": "centres", "lengths": [0]}, 422, "lengths"),
    ("heads/plans", {"lm": "tiny", "kind": "act", "min_rows": 10**30}, 422, "min_rows"),
    ("attention", {**TEXT, "text": "x" * 1500}, 413, "queries"),
    ("attention", {**TEXT, "text": "x" * 9000}, 413, "text"),
])  # fmt: skip
async def test_bad_request_is_a_problem_that_names_its_field(client, path, body, status, field):
    answer = await client.post(f"/v1/probe/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    if field:
        assert field in json.dumps(answer.json())


async def test_models_tell_what_is_loaded_and_unknown_reports_and_artefacts_are_not_found(client):
    await client.post("/v1/probe/sinks", json=TEXT)
    told = {entry["name"]: entry for entry in (await client.get("/v1/probe/models")).json()}
    assert told["tiny-induction"]["loaded"]
    assert (told["tiny-induction"]["layers"], len(told["tiny-induction"]["weights_sha256"])) == (3, 64)
    assert all(not entry["loaded"] for name, entry in told.items() if name != "tiny-induction")
    assert sum(entry["default"] for entry in told.values()) == 1
    for unknown in ("0" * 64, "..%2F..%2Fetc%2Fpasswd", "x"):
        assert (await client.get(f"/v1/probe/artefacts/{unknown}")).status_code == 404
        assert (await client.get(f"/v1/probe/reports/{unknown}")).status_code == 404


async def test_example_of_retrieval_heads_finds_heads_that_the_answers_need(client):
    kind = servables("interpretability")["retrieval-heads"]
    report = (await client.post("/v1/probe/heads/retrieval", json=kind.card.example)).json()
    told = {name: scalar["value"] for name, scalar in report["scalars"].items()}
    assert report["warnings"] == [], "the task is solved, on enough samples"
    assert told["accuracy"] > 0.6
    assert told["split_half"] > 0.9
    assert 1 <= told["retrieval_heads"] <= 6, "some of twelve"
    left = {bar["label"]: bar for bar in next(b for b in report["bars"] if b["name"] == "masking_accuracy")["bars"]}
    assert left["top 2"]["value"] < left["random 2"]["low"]
    plan = next(one for one in report["artefacts"] if one["name"] == "head-plan.json")
    kept = (await client.get(f"/v1/probe/artefacts/{plan['sha256']}")).json()
    assert (kept["schema"], len(kept["heads"])) == ("head-plan/1", told["retrieval_heads"])


LONG = {"lm": "tiny", "protocol": "kv", "samples": 2, "pairs": 3}


async def test_what_takes_long_asks_to_be_queued_and_says_how_long_it_takes(client, monkeypatch):
    monkeypatch.setattr(StudiedModel, "seconds_per_token", property(lambda _: 0.1))
    for path in ("/v1/probe/heads/retrieval", "/v1/probe"):
        named = {"model": "retrieval-heads"} if path == "/v1/probe" else {}
        answer = await client.post(path, json={**LONG, **named})
        assert answer.status_code == 413, answer.text
        assert answer.headers["x-fovea-wants"] == "respond-async"
        assert "takes about" in answer.json()["detail"]
        assert "respond-async" in answer.json()["hint"]
    scalars = (await client.post("/v1/probe/heads/retrieval", json={**LONG, "dry_run": True})).json()["scalars"]
    assert scalars["seconds"]["value"] == pytest.approx(scalars["tokens"]["value"] / 10)
    monkeypatch.setattr(StudiedModel, "seconds_per_token", property(lambda _: 1e-6))
    assert (await client.post("/v1/probe/heads/retrieval", json=LONG)).status_code == 200
