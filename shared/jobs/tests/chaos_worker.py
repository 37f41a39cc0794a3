"""A worker process for chaos tests: a body is how many seconds each attempt takes; a shared ledger has begins and ends.

`python chaos_worker.py URL DATA_DIR LEDGER`
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from shared.jobs.consumer import QueueConsumer
from shared.jobs.queue import Payload, Result, Ticket
from shared.jobs.worker import JobWorker
from shared.settings import Settings


async def main(url: str, data_dir: str, ledger: str) -> None:
    chosen, handle = Settings(data_dir=Path(data_dir)), os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(ticket: Ticket, what: str) -> None:
        os.write(handle, f"{ticket.id} {ticket.attempt} {os.getpid()} {what}\n".encode())

    async def handler(payload: Payload, ticket: Ticket) -> Result:
        note(ticket, "begin")
        seconds = payload.body.split(b" ")[0].split(b",")
        steps = max(1, round(float(seconds[min(ticket.attempt, len(seconds)) - 1]) / 0.05))
        stop = asyncio.create_task(ticket.wait_until_cancelled())
        for step in range(steps):
            await ticket.progress(step / steps)
            await asyncio.wait({stop}, timeout=0.05)
            if stop.done():
                note(ticket, "stop")
                raise asyncio.CancelledError
        note(ticket, "end")
        return Result(200, "text/plain", f"{ticket.attempt}".encode())

    inbox = QueueConsumer(url, "svc", chosen)
    worker = JobWorker(inbox, handler, chosen)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    await inbox.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
