"""The routes: forms of an answer, refusals by name, kept reports and artefacts; experiments on a GPT-2 of one's own."""

import json

import numpy as np
import pytest
import pytest_asyncio
import torch

from services.interpretability.attention.retrieval_score import retrieval_score
from services.interpretability.core.model_registry import ModelRegistry
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads import RetrievalHeadsSpec
from services.interpretability.experiments.retrieval_heads.spec import draw_samples
from services.interpretability.rendering.html_page import POLICY
from services.interpretability.tests.conftest import probing, write_gpt2
from shared.lm.builders import gpt2
from shared.lm.taps import trace
from shared.registry import servables
from tests.harness.models import ok

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
    answer = await client.post("/v1/probe/sinks", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("form", "media", "begins"),
    [("html", "text/html", b"<!doctype html>"), ("png", "image/png", b"\x89PNG"), ("svg", "image/svg+xml", b"<svg")],
)
async def test_answer_comes_in_the_form_that_is_asked_for(client, form, media, begins):
    answer = await client.post("/v1/probe/attention", params={"format": form}, json=TEXT)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, media)
    assert answer.content.startswith(begins)
    assert answer.headers.get("content-security-policy") == (POLICY if form == "html" else None)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("sinks", {"lm": "tiny"}, 422, "text"),
        ("sinks", {**TEXT, "threshold": 3}, 422, "threshold"),
        ("sinks", {**TEXT, "nonsense": 1}, 422, "nonsense"),
        ("sinks", {**TEXT, "lm": "gpt-7"}, 404, "lm"),
        ("sinks", {**TEXT, "format": "gif"}, 422, "format"),
        ("sinks", {**TEXT, "format": ["png"]}, 422, "format"),
        ("heads/plans", {"lm": "tiny", "kind": "centres", "lengths": [0]}, 422, "lengths"),
        ("heads/plans", {"lm": "tiny", "kind": "act", "min_rows": 10**30}, 422, "min_rows"),
        ("attention", {**TEXT, "text": "x" * 1500}, 413, "queries"),
        ("attention", {**TEXT, "text": "x" * 9000}, 413, "text"),
    ],
)
async def test_bad_request_is_a_problem_that_names_its_field(client, path, body, status, field):
    answer = await client.post(f"/v1/probe/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    if field:
        assert field in json.dumps(answer.json())


async def test_models_tell_what_is_loaded_and_load_nothing(client):
    await client.post("/v1/probe/sinks", json=TEXT)
    told = {entry["name"]: entry for entry in (await client.get("/v1/probe/models")).json()}
    assert told["tiny-induction"]["loaded"]
    assert (told["tiny-induction"]["layers"], len(told["tiny-induction"]["weights_sha256"])) == (3, 64)
    assert all(not entry["loaded"] for name, entry in told.items() if name != "tiny-induction")
    assert sum(entry["default"] for entry in told.values()) == 1


async def test_unknown_reports_and_artefacts_are_not_found(client):
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


NAME = "gpt2-of-mine"
LAYERS, HEADS, POSITIONS = 3, 4, 1024
OWN = {"routing-clusters", "deconstruction-study", "sparsity"}
"""Experiments on models of their own."""

KV = {"protocol": "kv", "samples": 2, "pairs": 3, "shots": 1, "key_chars": 4, "value_words": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(5)
    sizes = {"vocab": 256, "width": 32, "layers": LAYERS, "heads": HEADS, "hidden": 64, "positions": POSITIONS}
    model = gpt2(**sizes).requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[1] ** 0.5)
    weights = {key: x for key, x in model.state_dict().items() if key != "lm_head.weight"}
    write_gpt2(folder / "weights" / NAME, sizes, weights)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(data):
    async with probing(data) as asked:
        yield asked


async def test_retrieval_heads_are_those_of_its_own_pattern_rows(own, data):
    report = ok(await own.post("/v1/probe/heads/retrieval", json={"model": NAME, "seed": 3, **KV}))
    assert report["manifest"]["model"] == NAME
    assert any("does not solve the task" in warning for warning in report["warnings"]), "random weights know nothing"
    subject = ModelRegistry(data, data / "weights", NAME, "float32", "cpu").get(NAME)
    names, expected = [f"pattern.{i}" for i in range(LAYERS)], []
    for sample in draw_samples(RetrievalHeadsSpec(seed=3, **KV), subject):
        read, said = sample.prompt.ids, sample.prompt.answer_ids
        seen = trace(subject.model, torch.tensor([[*read, *said[:-1]]]), capture=names)
        rows = torch.stack([seen[name][0] for name in names]).permute(2, 0, 1, 3)
        expected.append(retrieval_score(rows[len(read) - 1 :].numpy(), read, said, sample.prompt.span))
    grid = next(grid for grid in report["grids"] if grid["name"] == "retrieval_score")
    assert np.max(expected) > 0, "else nothing would be compared"
    assert np.allclose(grid["values"], np.mean(expected, 0))
    plan = next(one for one in report["artefacts"] if one["name"] == "head-plan.json")
    roles = (await own.get(f"/v1/probe/artefacts/{plan['sha256']}")).json()["roles"]
    assert (np.array(roles).shape, np.sum(roles)) == ((LAYERS, HEADS), LAYERS * HEADS / 2)


@pytest.mark.parametrize("name", [name for name in servables("interpretability") if name not in OWN])
async def test_experiment_answers_its_example_for_it(own, name):
    kind = servables("interpretability")[name]
    example = {**kind.card.example, "model": NAME}
    del example["lm"]
    assert ok(await own.post(f"/v1/probe/{kind.route}", json=example))["manifest"]["model"] == NAME
