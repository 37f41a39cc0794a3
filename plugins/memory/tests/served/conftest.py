"""The trained mixers behind the real app under uvicorn, with a Redis of its own."""

import httpx2
import pytest

from plugins.memory.tests.conftest import mixers_app
from services.llm_longctx.tests.conftest import Server
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings


@pytest.fixture(scope="package")
def mixers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixers")
    redis = RedisServer(Settings(data_dir=folder / "redis"))
    with redis, Server(mixers_app(folder, redis.url)) as running:
        yield running


@pytest.fixture(scope="package")
def http(mixers):
    return mixers.http


@pytest.fixture
def adapter(mixers):
    return lambda name: mixers.app.state.host.servable(name).adapter


def metric(http: httpx2.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
