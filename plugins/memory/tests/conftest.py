"""The gateway in front of the real trained mixers, with a Redis of their own."""

from pathlib import Path
from typing import Any

import pytest

from services.gateway.tests.stage import fronted
from services.llm_longctx.api import openai
from shared.jobs.redis_server import RedisServer
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import Settings

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
        yield found
