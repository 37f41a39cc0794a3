"""A full disk is 507 and a read-only one 503, with a hint, and what was there stays readable."""

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from fovea.errors import StorageFull
from services.gateway.app import build_gateway
from services.relevance_judge.routes import router
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.jobs.queue import Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.serving.build_app import build
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings
from shared.storage.tests.small_disk import make_read_only, mount_small_disk
from tests.contract.language_model import answering

LOCAL = "http://127.0.0.1"
"""A gateway without keys answers no other host name."""


def test_a_service_whose_disk_is_full_or_read_only_says_what_to_do(tmp_path):
    training = {"signals": [0.1, 1.1, 2.1] * 4, "grades": [0, 1, 3] * 4, "queries": [str(n) for n in range(12)]}
    model = FakeModel(first={"0": -0.5, "3": -1.0})
    with mount_small_disk(tmp_path / "disk") as place:
        settings = Settings(data_dir=place / "data", shutdown_grace_s=1)
        app = build("relevance-judge", routers=[router], servables={"log-odds": answering(model)}, settings=settings)
        with ready_client(app, raise_server_exceptions=False) as client:
            assert client.post("/v1/judge/calibrations", json={**training, "name": "small"}).status_code == 200
            ids = [f"{n} {'x' * 9000}" for n in range(12)]
            full = client.post("/v1/judge/calibrations", json={**training, "pairs": ids, "name": "large"})
            assert (full.status_code, full.json()["code"]) == (507, "storage_full")
            assert full.json()["hint"]
            make_read_only(place)
            closed = client.post("/v1/judge/calibrations", json={**training, "name": "more"})
            assert (closed.status_code, closed.json()["code"]) == (503, "not_ready")
            assert "read-only" in closed.json()["detail"]
            assert [row["name"] for row in client.get("/v1/judge/calibrations").json()] == ["small"]


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
