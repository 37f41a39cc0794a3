"""The gateway in front of the real trained mixers, with keys and a Redis of their own."""

from dataclasses import dataclass

import httpx2
import pytest

from services.gateway.policy.auth import KeyRing
from services.gateway.tests.stage import fronted
from services.llm_longctx.api import openai
from shared.jobs.redis_server import RedisServer
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.waiting import wait_until


@dataclass
class Remembering:
    url: str
    keys: KeyRing


@pytest.fixture(scope="module", params=["insecure-local"])
def remembering(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remembering")
    kinds = {name: kind for name, kind in servables("llm-longctx").items() if name.startswith("fovea-")}
    with RedisServer(Settings(_env_file=None, data_dir=folder / "redis")) as redis:
        app = build(
            "llm-longctx",
            routers=[openai.router],
            servables=kinds,
            settings=Settings(_env_file=None, data_dir=folder, intra_op_threads=1, redis_url=redis.url),
        )
        with fronted(app, "llm-longctx", folder, auth=request.param) as (url, _, keys):
            headers = {"x-api-key": keys.add("watch", ("infer",))[1]} if request.param == "keys" else {}
            wait_until(lambda: _serves(url, headers), 60, "the service's readiness")
            yield Remembering(url, keys)


def _serves(url: str, headers: dict[str, str]) -> bool:
    """Whether the models are ready, and the gateway knows the service's own routes."""
    ready = all(entry["ready"] for entry in httpx2.get(f"{url}/v1/models", headers=headers).json()["data"])
    return ready and httpx2.get(f"{url}/v1/documents", headers=headers, timeout=30).status_code == 200


@pytest.fixture
def url(remembering):
    return remembering.url
