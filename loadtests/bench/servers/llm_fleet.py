"""Replicas of SmolLM2 in one process: four announce themselves in one Redis, one in `BENCH_REDIS_ALONE`.

They share nothing but the process, so that five fit a small machine: each has its own weights and its own cache.
`llm_fleet PORT`; the port is that of the one that is alone.
"""

import asyncio
import os
import sys

from services.llm_longctx.api import openai
from shared.registry import servables
from shared.serving.build_app import build
from shared.serving.replica import ReplicaServer
from shared.settings import settings

MODEL = "smollm2-135m-instruct"


async def main(port: int) -> None:
    """Serve until killed; the one with the port comes last, so that all listen once it does."""
    alone = settings().model_copy(update={"redis_url": os.environ["BENCH_REDIS_ALONE"]})
    for config, own_port in (*((settings(), 0) for _ in range(4)), (alone, port)):
        models = {MODEL: servables("llm-longctx")[MODEL]}
        app = build("llm-longctx", routers=[openai.router], servables=models, settings=config)
        server = ReplicaServer(app, config, http_port=own_port)
        await server.start()
        while not server.host.settled:  # noqa: ASYNC110  # one after another: loading takes more memory than serving
            await asyncio.sleep(0.2)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
