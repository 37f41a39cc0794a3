"""State: what a tenant made is invisible to another, what one machine stored is found by all, and disks are full.

Over every route of the OpenAPI documents of what keeps state: a route whose path names something is known here as a
tenant's (`OWNED`) or everybody's (`SHARED`). A new one fails this test until somebody says which it is.
"""

import json
import re
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fovea.api.replica import ReplicaRecord
from fovea.errors import StorageFull
from services.gateway.app import build_gateway
from services.gateway.policy.auth import KeyRing
from services.interpretability.routes import build_router
from services.llm_longctx.api import lora, openai
from services.llm_longctx.serving.local_models import make_local_model
from services.llm_longctx.tests.conftest import write_folder
from services.llm_longctx.tests.test_openai_lora import body as make_adapter
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.routes import router as judge_router
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.lm.head_plan_store import HeadPlanStore
from shared.registry import servables
from shared.serving.build_app import build
from shared.serving.heartbeat import Heartbeat
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings
from shared.storage import open_object_store
from shared.storage.tests.s3_server import run_s3_server
from shared.storage.tests.small_disk import make_read_only, mount_small_disk
from tests.harness.waiting import wait_until

SECRET = "quince-marmalade"
"""In everything that alice makes."""

OWNED = {
    "/v1/judge/calibrations/{name}", "/v1/judge/batches/{name}", "/v1/probe/reports/{key}",
    "/v1/probe/artefacts/{sha256}", "/v1/sessions/{session_id}", "/v1/sessions/{session_id}/fork",
    "/v1/sessions/{session_id}/export", "/v1/sessions/{session_id}/import", "/v1/sessions/{session_id}/rollback",
    "/v1/sessions/{session_id}/surprise", "/v1/documents/{document_id}", "/v1/steering-vectors/{name}",
    "/v1/lora-adapters/{name}", "/v1/captures/{capture_id}", "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/input_items",
    "/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel",
    "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events", "/v1/jobs/{job_id}/result", "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/retry",
}  # fmt: skip

OPERATORS = re.compile(r"/v1/admin/.*")
"""Routes with the scope `admin`, which no tenant of these has."""

SHARED = re.compile(r"/v2/.*|/v1/models/.*|/v1/longctx/methods/.*|/v1/judge/templates/.*")
"""Models, methods and templates: what operators install, not what tenants make."""


@dataclass
class Stage:
    """An app, how a tenant signs its requests, and what alice made: path parameters, and bodies that name it."""

    app: FastAPI
    client: TestClient
    headers: dict[str, dict[str, str]]
    made: dict[str, str] = field(default_factory=dict)
    naming: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def send(self, who: str, method: str, path: str, **more: Any) -> Any:
        return self.client.request(method, path, headers=self.headers[who], **more)

    def make(self, path: str, body: dict[str, Any]) -> Any:
        return self.send("alice", "POST", path, json=body).json()


TRAINING = {"signals": [0.1, 1.1, 2.1] * 4, "grades": [0, 1, 3] * 4, "queries": [str(n) for n in range(12)]}
BOARD = [{"judge": SECRET, "labels": "1 0 a 1\n1 0 b 1\n"}]
LABELS = {"reference": "1 0 a 1\n1 0 b 0\n", "judges": BOARD, "draws": 10}
BY_HEADER = {who: {"x-fovea-tenant": who} for who in ("alice", "bob")}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    model = FakeModel(first={"0": -0.5, "3": -1.0})
    settings = Settings(data_dir=tmp_path_factory.mktemp("judge"), shutdown_grace_s=1)
    judges = {"log-odds": answered_by(model, LogOdds)}
    app = build("relevance-judge", routers=[judge_router], servables=judges, settings=settings)
    with ready_client(app) as client:
        stage = Stage(app, client, BY_HEADER)
        stage.make("/v1/judge/calibrations", {**TRAINING, "name": SECRET, "signal": SECRET})
        stage.make("/v1/judge/leaderboard", LABELS | {"name": SECRET})
        pairs = json.dumps({"qid": SECRET, "docid": "d", "query": SECRET, "passage": SECRET})
        batch = stage.make("/v1/judge/batches", {"pairs": pairs})
        stage.made = {"/v1/judge/calibrations/{name}": SECRET, "/v1/judge/batches/{name}": batch["id"]}
        stage.naming = [
            ("/v1/judge", {"query": "q", "passages": ["p"], "calibration": SECRET}),
            ("/v1/judge/batches", {"pairs": pairs, "options": {"calibration": SECRET}}),
            (f"/v1/judge/leaderboard?name={SECRET}", {}),
        ]
        yield stage


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    kinds = {name: kind for name, kind in servables("interpretability").items() if name in {"head-plans", "circuits"}}
    settings = Settings(data_dir=tmp_path_factory.mktemp("probe"), intra_op_threads=1)
    app = build("interpretability", routers=[build_router(kinds)], servables=kinds, settings=settings)
    with ready_client(app) as client:
        stage = Stage(app, client, BY_HEADER)
        spec = {"lm": "tiny-induction", "kind": "razor", "period": 24, "repeats": 3, "name": SECRET}
        report = stage.make("/v1/probe/heads/plans", spec)
        key, artefact = report["manifest"]["report"], report["artefacts"][0]["sha256"]
        stage.made = {"/v1/probe/reports/{key}": key, "/v1/probe/artefacts/{sha256}": artefact}
        stage.naming = [
            ("/v1/probe/circuits/compare", {"first": key, "second": key}),
            ("/v1/probe/heads/plans", {"lm": "tiny-induction", "kind": "retrieval", "report": artefact}),
        ]
        yield stage


@pytest.fixture(scope="module")
def text(tmp_path_factory, module_redis_url):
    names = {"fovea-titans-lmm", "fovea-landmark-recall"}
    kinds = {name: kind for name, kind in servables("llm-longctx").items() if name in names}
    steerable = make_local_model(write_folder(tmp_path_factory.mktemp("models") / "Tiny Llama"))
    kinds[steerable.card.name] = steerable
    settings = Settings(data_dir=tmp_path_factory.mktemp("text"), intra_op_threads=1, redis_url=module_redis_url)
    routers = [openai.router, lora.router]
    app = build("llm-longctx", routers=routers, servables=kinds, settings=settings)
    with ready_client(app) as client:
        stage = Stage(app, client, BY_HEADER)
        session = stage.make("/v1/sessions", {"model": "fovea-titans-lmm"})["id"]
        body = {"model": "fovea-landmark-recall", "text": "ant blue and the of " * 6, "name": SECRET}
        document = stage.make("/v1/documents", body)["id"]
        stage.made = {route: session for route in OWNED if "{session_id}" in route}
        stage.made["/v1/documents/{document_id}"] = document
        asked = {"model": "fovea-landmark-recall", "input": "ant", "max_output_tokens": 1, "store": True}
        stored = stage.make("/v1/responses", asked)["id"]
        stage.made |= {route: stored for route in OWNED if "{response_id}" in route}
        vector = {"model": steerable.card.name, "name": SECRET, "positive": ["calm"], "negative": ["loud"]}
        stage.made["/v1/steering-vectors/{name}"] = stage.make("/v1/steering-vectors", vector)["name"]
        adapter = make_adapter(SECRET) | {"model": steerable.card.name}
        stage.made["/v1/lora-adapters/{name}"] = stage.make("/v1/lora-adapters", adapter)["id"]
        tiny = {"model": steerable.card.name, "prompt": "a" * 150, "max_tokens": 1}
        kept = stage.make("/v1/completions", tiny | {"capture": [{"type": "attention", "positions": "prompt"}]})
        stage.made["/v1/captures/{capture_id}"] = kept["choices"][0]["captured"][0]["url"].rpartition("/")[2]
        stage.naming = [
            ("/v1/completions", tiny | {"interventions": [{"vector": SECRET}]}),
            ("/v1/completions", tiny | {"model": SECRET}),
            ("/v1/responses", {"model": SECRET, "input": "a", "max_output_tokens": 1}),
            ("/v1/completions", tiny | {"model": "fovea-titans-lmm", "prompt": "a", "session_id": session}),
            ("/v1/completions", tiny | {"model": "fovea-landmark-recall", "prompt": "a", "document_id": document}),
            ("/v1/responses", asked | {"previous_response_id": stored}),
        ]
        yield stage


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, module_redis_url):
    settings = Settings(data_dir=tmp_path_factory.mktemp("gateway"), redis_url=module_redis_url, auth="keys")
    keys = KeyRing(settings.keys_path)
    headers = {who: {"x-api-key": keys.add(who, ("infer", "jobs"))[1]} for who in ("alice", "bob")}
    app = build_gateway(settings)
    with TestClient(app) as client:
        stage = Stage(app, client, headers)
        payload = Payload("svc", f"/v1/{SECRET}", SECRET.encode(), {}, tenant="alice")
        queue = app.state.gateway.queue
        assert isinstance(queue, RedisJobQueue)
        assert client.portal is not None
        job, _ = client.portal.call(queue.submit, payload)
        stage.made = {route: job.id for route in OWNED if "{job_id}" in route}
        heartbeat = _announce(client, module_redis_url)
        line = {"custom_id": SECRET, "url": "/v1/echo", "body": {"content": SECRET}}
        form = {"files": {"file": (f"{SECRET}.jsonl", json.dumps(line).encode())}, "data": {"purpose": "batch"}}
        upload = stage.send("alice", "POST", "/v1/files", **form).json()["id"]
        asked = {"input_file_id": upload, "endpoint": "/v1/echo", "metadata": {"of": SECRET}}
        batch = stage.make("/v1/batches", asked)["id"]
        for part, made in (("{file_id}", upload), ("{batch_id}", batch)):
            stage.made |= {route: made for route in OWNED if part in route}
        stage.naming = [("/v1/batches", asked)]
        yield stage
        client.portal.call(heartbeat.stop)


def _announce(client: TestClient, redis_url: str) -> Heartbeat:
    """A replica that answers `/v1/echo`, as the gateway sees it: none is there, so that jobs stay queued."""
    facts = {"id": "r", "service": "svc", "http": "http://127.0.0.1:1", "pid": 1, "models": (), "routes": ("/v1/echo",)}
    heartbeat = Heartbeat(redis_url, lambda: ReplicaRecord(**facts, ready=True, seen=time.time()))
    assert client.portal is not None
    client.portal.call(heartbeat.start)
    registry = client.app.state.gateway.registry  # type: ignore[attr-defined]
    wait_until(lambda: registry.routes.find("/v1/echo") is not None, what="the route of the replica")
    return heartbeat


@pytest.fixture(params=["judge", "probe", "text", "gateway"])
def stage(request):
    return request.getfixturevalue(request.param)


def _operations(stage: Stage) -> list[tuple[str, str]]:
    paths: dict[str, Any] = stage.app.openapi()["paths"]
    return [(path, method.upper()) for path, methods in paths.items() for method in methods]


def test_every_route_that_names_something_is_a_tenants_or_everybodys(stage):
    others = re.compile(f"{SHARED.pattern}|{OPERATORS.pattern}")
    named = {path for path, _ in _operations(stage) if "{" in path and not others.fullmatch(path)}
    assert named <= OWNED, "say of new routes whose they are"
    assert named == set(stage.made), "and make one of alice's"


def test_what_alice_made_is_not_found_by_bob_and_outlives_him(stage):
    owned = [(path, method) for path, method in _operations(stage) if path in OWNED]
    for path, method in owned:
        place = re.sub(r"\{.*?\}", stage.made[path], path)
        body: dict[str, Any] = {"json": {"version": 0}}
        if path.endswith("/import"):  # what alice herself could send
            body = {"content": stage.send("alice", "GET", place.replace("/import", "/export")).content}
        answer = stage.send("bob", method, place, **body)
        assert answer.status_code == 404, (method, path, answer.text)
    for path, method in owned:
        if method == "GET" and not path.endswith(("/events", "/result", "/surprise", "/export")):
            answer = stage.send("alice", method, re.sub(r"\{.*?\}", stage.made[path], path))
            assert answer.status_code == 200, (path, answer.text)


def test_operators_routes_are_no_tenants(gateway):
    routes = [(path, method) for path, method in _operations(gateway) if OPERATORS.fullmatch(path)]
    assert routes
    for path, method in routes:
        answer = gateway.send("bob", method, path.replace("{key_id}", "k"), json={})
        assert answer.status_code == 403, (method, path, answer.text)


def test_no_list_shows_and_no_request_of_bob_names_what_alice_made(stage):
    for path, method in _operations(stage):
        if method == "GET" and "{" not in path:
            answer = stage.send("bob", method, path)
            assert SECRET not in answer.text, path
            assert not any(name in answer.text for name in stage.made.values()), path
    for path, body in stage.naming:
        method = "POST" if body else "GET"
        theirs = stage.send("bob", method, path, json=body or None)
        assert theirs.status_code == 404, (path, theirs.text)
        own = stage.send("alice", method, path, json=body or None)
        assert own.status_code != 404, (path, own.text)


def test_everything_of_tenants_lies_below_a_tenant_and_a_plan_serves_its_own(probe, judge, gateway):
    objects = probe.app.state.objects
    plans = "head-plans/tiny-induction/quince-marmalade.json"
    assert objects.of_tenant("alice").head(plans) is not None
    assert objects.of_tenant("bob").head(plans) is None
    folders = [Path(stage.app.state.settings.data_dir) for stage in (judge, probe)]
    for folder in (*folders, gateway.app.state.gateway.settings.data_dir):
        files = [file for file in folder.rglob("*") if file.is_file()]
        holders = [file for file in files if SECRET in str(file) + file.read_text("latin-1")]
        assert holders
        assert {file.relative_to(folder).parts[0] for file in holders} == {"tenants"}


Machine = Callable[[str], Settings]
LOCAL = "http://127.0.0.1"
"""A gateway without keys answers no other host name."""


@pytest.fixture(scope="module")
def variables():
    with run_s3_server() as found:
        yield found


@pytest.fixture
def machine(variables, tmp_path, monkeypatch):
    """Settings of a machine with a folder of its own; all of one test share a bucket's path."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url = f"s3://fovea/{uuid.uuid4().hex}"
    return lambda name: Settings(data_dir=tmp_path / name, object_store=url, intra_op_threads=1, shutdown_grace_s=1)


def _serving(service: str, router: Any, kinds: Any, settings: Settings) -> AbstractContextManager[TestClient]:
    return ready_client(build(service, routers=[router], servables=kinds, settings=settings))


def test_calibrations_leaderboards_and_labels_of_one_replica_serve_on_another(machine):
    model = FakeModel(first={"0": -0.5, "3": -1.0})
    judges = {"log-odds": answered_by(model, LogOdds)}
    batch = {"topics": "1\tq\n", "passages": "a\tone\nb\ttwo\n"}
    with _serving("relevance-judge", judge_router, judges, machine("one")) as one:
        assert one.post("/v1/judge/calibrations", json={**TRAINING, "name": "mine"}).status_code == 200
        assert one.post("/v1/judge/leaderboard", json={**LABELS, "name": "board"}).status_code == 200
        first = one.post("/v1/judge/batches", json=batch).json()
    asked = len(model.asked)
    with _serving("relevance-judge", judge_router, judges, machine("two")) as two:
        body = {"query": "q", "passages": ["p"], "calibration": "mine"}
        assert two.post("/v1/judge", json=body).json()["results"][0]["calibration"].startswith("mine@1:")
        assert two.post("/v1/judge/calibrations", json={**TRAINING, "name": "mine"}).json()["version"] == 2
        assert two.get("/v1/judge/leaderboard?name=board").status_code == 200
        assert [row["id"] for row in two.get("/v1/judge/batches").json()] == [first["id"]]
        again = two.post("/v1/judge/batches", json=batch).json()
    assert (again["id"], again["reused"]) == (first["id"], 2)
    assert sum("messages" in body for body in model.asked[asked:]) == 1, "no label was asked for twice"


def test_a_head_plan_and_its_report_reach_the_services_of_other_machines(machine):
    kinds = {"head-plans": servables("interpretability")["head-plans"]}
    spec = {"lm": "tiny-induction", "kind": "razor", "period": 24, "repeats": 3, "name": "mine"}
    with _serving("interpretability", build_router(kinds), kinds, machine("one")) as one:
        report = one.post("/v1/probe/heads/plans", json=spec).json()
    with _serving("interpretability", build_router(kinds), kinds, machine("two")) as two:
        assert two.get(f"/v1/probe/reports/{report['manifest']['report']}").json()["title"] == report["title"]
        again = two.post("/v1/probe/heads/plans", json=spec).json()
    assert again["manifest"]["created"] == report["manifest"]["created"], "its cells were not computed again"
    plans = HeadPlanStore("tiny-induction", None, open_object_store(machine("three")))
    assert plans["mine"].digest == report["artefacts"][0]["sha256"]


def test_a_file_that_one_gateway_took_is_on_another(machine):
    with TestClient(build_gateway(machine("one")), LOCAL) as one:
        form = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}
        files = [one.post("/v1/files", **form).json() for _ in range(3)]
    with TestClient(build_gateway(machine("two")), LOCAL) as two:
        assert {file["id"] for file in two.get("/v1/files").json()["data"]} == {file["id"] for file in files}
        assert two.get(f"/v1/files/{files[0]['id']}/content").content == b"{}"
        assert two.delete(f"/v1/files/{files[0]['id']}").status_code == 200
    with TestClient(build_gateway(machine("one")), LOCAL) as one:
        assert one.get(f"/v1/files/{files[0]['id']}").status_code == 404


def test_a_gateway_whose_disk_is_full_or_read_only_keeps_the_files_it_has(tmp_path):
    with mount_small_disk(tmp_path / "disk") as place:
        app = build_gateway(Settings(data_dir=place / "data", redis_url=None))
        with TestClient(app, LOCAL, raise_server_exceptions=False) as client:

            def upload(content: bytes) -> Any:
                return client.post("/v1/files", files={"file": ("a", content)}, data={"purpose": "batch"})

            small = upload(b"x")
            assert small.status_code == 200
            full = upload(b"x" * 200_000)
            assert (full.status_code, full.json()["error"]["code"]) == (507, "storage_full")
            make_read_only(place)
            closed = upload(b"y")
            assert (closed.status_code, closed.json()["error"]["code"]) == (503, "not_ready")
            assert client.delete(f"/v1/files/{small.json()['id']}").status_code == 503
            assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [small.json()["id"]]
            assert client.get(f"/v1/files/{small.json()['id']}/content").content == b"x"


async def test_a_job_that_finds_no_room_is_not_accepted(tmp_path, own_redis):
    payload = Payload("svc", "/v1/x", b"x", {}, tenant="ann")
    with mount_small_disk(tmp_path / "disk") as place:
        queue = RedisJobQueue(own_redis.url, Settings(data_dir=place / "data", job_inline_max_bytes=10))
        try:
            kept, _ = await queue.submit(replace(payload, body=b"x" * 1000))
            with pytest.raises(StorageFull):
                await queue.submit(replace(payload, body=b"x" * 1_000_000))
            assert [job.id for job in await queue.recent("ann")] == [kept.id]
        finally:
            await queue.close()
