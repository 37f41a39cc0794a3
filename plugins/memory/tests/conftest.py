"""The gateway in front of the real trained mixers, with a Redis of their own."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.gateway.tests.stage import fronted
from services.llm_longctx.api import openai
from shared.jobs.redis_server import RedisServer
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until

KINDS = {name: kind for name, kind in servables("llm-longctx").items() if name.startswith("fovea-")}


def mixers_app(folder: Path, redis_url: str, servables: dict[str, Any] = KINDS, **more: Any):
    settings = Settings(_env_file=None, data_dir=folder, intra_op_threads=1, redis_url=redis_url, **more)
    return build("llm-longctx", routers=[openai.router], servables=servables, settings=settings)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remembering")
    with (
        RedisServer(Settings(_env_file=None, data_dir=folder / "redis")) as redis,
        fronted(mixers_app(folder, redis.url), "llm-longctx", folder, auth="insecure-local") as (found, _, _),
    ):
        wait_until(lambda: _serves(found), 60, "the service's readiness")
        yield found


def _serves(url: str) -> bool:
    """Whether the models are ready, and the gateway knows the service's own routes."""
    ready = all(entry["ready"] for entry in httpx2.get(f"{url}/v1/models").json()["data"])
    return ready and httpx2.get(f"{url}/v1/documents", timeout=30).status_code == 200
