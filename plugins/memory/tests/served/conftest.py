"""The trained mixers behind the real app under uvicorn, with a Redis of its own."""

import httpx2
import pytest

from services.llm_longctx.api import openai
from services.llm_longctx.tests.conftest import Server
from shared.jobs.redis_server import RedisServer
from shared.registry import servables
from shared.serving.build_app import build
from shared.settings import Settings

KINDS = {name: kind for name, kind in servables("llm-longctx").items() if name.startswith("fovea-")}


@pytest.fixture(scope="package")
def mixers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixers")
    with RedisServer(Settings(data_dir=folder / "redis")) as redis:
        app = build(
            "llm-longctx",
            routers=[openai.router],
            servables=KINDS,
            settings=Settings(data_dir=folder, intra_op_threads=1, redis_url=redis.url),
        )
        with Server(app) as running:
            yield running


@pytest.fixture(scope="package")
def http(mixers):
    with httpx2.Client(base_url=mixers.url, timeout=60) as client:
        yield client


@pytest.fixture
def adapter(mixers):
    return lambda name: mixers.app.state.host.servable(name).adapter


def metric(http: httpx2.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
