"""A worker process that writes begins and ends of its jobs into a ledger: `URL DATA_DIR LEDGER SECONDS_PER_JOB`."""

import asyncio
import os
import sys
import time
from pathlib import Path

from shared.jobs.consumer import QueueConsumer
from shared.jobs.queue import Payload, Result, Ticket
from shared.jobs.worker import JobWorker
from shared.settings import Settings


async def main(url: str, data_dir: str, ledger: str, seconds: str) -> None:
    """Work until killed."""
    chosen = Settings(data_dir=Path(data_dir), job_max_attempts=100)
    handle = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(ticket: Ticket, what: str) -> None:
        os.write(handle, f"{time.time()} {ticket.id} {ticket.attempt} {os.getpid()} {what}\n".encode())

    async def handler(payload: Payload, ticket: Ticket) -> Result:
        note(ticket, "begin")
        await asyncio.sleep(float(seconds))
        note(ticket, "end")
        return Result(200, "text/plain", f"{ticket.attempt} {payload.body[:40].decode()}".encode())

    await JobWorker(QueueConsumer(url, "chaos", chosen), handler, chosen).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
