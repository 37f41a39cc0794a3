"""`python -m shared.serving.tests.toy_replica`: a replica of the toys in a process of its own, until it is killed."""

import asyncio

from shared.serving.replica import ReplicaServer
from shared.serving.tests.toy_app import app
from shared.settings import settings
from shared.telemetry import configure_tracing


async def main():
    configure_tracing(settings().traces_endpoint, "fovea-toy")
    await ReplicaServer(app, settings()).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
