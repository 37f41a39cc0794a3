"""A worker that runs next to a test, or its side of the queue alone, and waiting for what becomes of a job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fovea.api.job import FINAL, Job
from shared.jobs.consumer import Delivery, QueueConsumer
from shared.jobs.queue import Handler, Payload
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.worker import JobWorker
from shared.settings import Settings


@asynccontextmanager
async def working(
    url: str, settings: Settings, handler: Handler, inbox: QueueConsumer | None = None
) -> AsyncIterator[JobWorker]:
    inbox = inbox or QueueConsumer(url, "svc", settings)
    worker = JobWorker(inbox, handler, settings)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 20)
        await inbox.close()


async def ended(queue: RedisJobQueue, job: Job, tenant: str = "ann") -> Job:
    async with asyncio.timeout(90):
        async for now in queue.events(job.id, tenant):
            last = now
    assert last.status in FINAL
    return last


async def started(queue: RedisJobQueue, job: Job, attempt: int = 1) -> None:
    async with asyncio.timeout(60):
        async for now in queue.events(job.id, "ann"):
            if now.status == "running" and now.attempts == attempt:
                return


async def run_one(queue: RedisJobQueue, payload: Payload) -> Job:
    """Submit a job; what became of it."""
    job, _ = await queue.submit(payload)
    return await ended(queue, job, payload.tenant)


async def take(inbox: QueueConsumer, *, reclaim: bool = False) -> Delivery:
    found = await inbox.take(reclaim=reclaim)
    assert isinstance(found, Delivery)
    return found
