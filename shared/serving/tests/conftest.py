"""Replicas and clients of the toys, and plain log lines: structlog's own draw tracebacks with all their variables."""

import contextlib

import httpx2
import pytest
import structlog

from shared.jobs.redis_queue import RedisJobQueue
from shared.serving.build_app import build
from shared.serving.replica import ReplicaServer
from shared.serving.tests.toys import TOYS
from shared.settings import Settings
from tests.harness.waiting import until


@pytest.fixture(scope="session", autouse=True)
def plain_logs():
    processors = [structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
    structlog.configure(processors=processors)
    yield
    structlog.reset_defaults()


@pytest.fixture
async def start_replica():
    """Starts replicas of the toys, whose models have loaded unless they need not; keyword arguments are settings."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(servables=TOYS, *, routers=(), must_load=True, **changed):
            settings = Settings(**{"redis_url": None, "shutdown_grace_s": 0.1, **changed})
            app = build("toy", routers=list(routers), servables=servables, settings=settings)
            made = ReplicaServer(app, settings)
            await made.start()

            @stack.push_async_callback
            async def stop():
                if made.alive:
                    await made.stop()

            if must_load:
                await until(lambda: not made.host.is_loading, 60)
            return made

        yield start


@pytest.fixture
async def start_client():
    """Starts apps of the toys, without sockets, and gives clients of them; keyword arguments are settings."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(servables=TOYS, *, routers=(), **settings):
            app = build("toy", routers=list(routers), servables=servables, settings=Settings(**settings))
            await app.state.host.start()
            stack.push_async_callback(app.state.host.stop)
            client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://toy")
            client.app = app
            return await stack.enter_async_context(client)

        yield start


@pytest.fixture
async def queue(redis_url, tmp_path):
    made = RedisJobQueue(redis_url, Settings(data_dir=tmp_path))
    yield made
    await made.close()
