"""State between machines: found by all, and full disks."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from fovea.errors import StorageFull
from services.gateway.app import build_gateway
from services.interpretability.routes import build_router
from services.relevance_judge.judges.log_odds import LogOdds
from services.relevance_judge.routes import router as judge_router
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.lm.head_plan_store import HeadPlanStore
from shared.registry import servables
from shared.serving.build_app import build
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings
from shared.storage import open_object_store
from shared.storage.tests.s3_server import run_s3_server
from shared.storage.tests.small_disk import make_read_only, mount_small_disk

Machine = Callable[[str], Settings]
TRAINING = {"signals": [0.1, 1.1, 2.1] * 4, "grades": [0, 1, 3] * 4, "queries": [str(n) for n in range(12)]}
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


@contextmanager
def _serving(service: str, router: Any, kinds: Any, settings: Settings) -> Iterator[TestClient]:
    with ready_client(build(service, routers=[router], servables=kinds, settings=settings)) as client:
        yield client


def test_calibrations_leaderboards_and_labels_of_one_replica_serve_on_another(machine):
    model = FakeModel(first={"0": -0.5, "3": -1.0})
    judges = {"log-odds": answered_by(model, LogOdds)}
    labels = {
        "reference": "1 0 a 1\n1 0 b 0\n", "judges": [{"judge": "j", "labels": "1 0 a 1\n1 0 b 1\n"}], "draws": 10,
    }  # fmt: skip
    batch = {"topics": "1\tq\n", "passages": "a\tone\nb\ttwo\n"}
    with _serving("relevance-judge", judge_router, judges, machine("one")) as one:
        assert one.post("/v1/judge/calibrations", json={**TRAINING, "name": "mine"}).status_code == 200
        assert one.post("/v1/judge/leaderboard", json={**labels, "name": "board"}).status_code == 200
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
        listed = two.get("/v1/files").json()["data"]
        assert {file["id"] for file in listed} == {file["id"] for file in files}
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


async def test_a_job_that_finds_no_room_is_not_accepted(tmp_path, redis_url):
    payload = Payload("svc", "/v1/x", b"x", {}, tenant="ann")
    with mount_small_disk(tmp_path / "disk") as place:
        queue = RedisJobQueue(redis_url, Settings(data_dir=place / "data", job_inline_max_bytes=10))
        try:
            kept, _ = await queue.submit(replace(payload, body=b"x" * 1000))
            with pytest.raises(StorageFull):
                await queue.submit(replace(payload, body=b"x" * 1_000_000))
            assert [job.id for job in await queue.recent("ann")] == [kept.id]
        finally:
            await queue.close()
