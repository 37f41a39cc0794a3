"""Job runner: takes the jobs of one service from the queue, runs them through a handler and books their usage.

The same in a replica and in a worker process; they differ in the handler only.
"""

import asyncio
import time

from fovea.api.usage import USAGE_HEADER, UsageScanner, find_model, read_header
from fovea.errors import FoveaError
from shared.jobs.consumer import QueueConsumer
from shared.jobs.key_limits import JobKeyLimits
from shared.jobs.queue import Handler, Payload, Result, Ticket
from shared.jobs.redis_client import retry_until_connected
from shared.jobs.usage_ledger import UsageLedger
from shared.jobs.worker import JobWorker
from shared.settings import Settings
from shared.telemetry import log


class JobRunner:
    """Runs the jobs of one service. Belongs to one event loop."""

    def __init__(self, url: str, service: str, handler: Handler, settings: Settings) -> None:
        self._consumer = QueueConsumer(url, service, settings)
        self._ledger, self._limits = UsageLedger(url), JobKeyLimits(url)
        self._worker = JobWorker(self._consumer, charge_jobs(handler, self._ledger, self._limits), settings)
        self._log = log("jobs")

    @property
    def busy(self) -> int:
        """Jobs that run."""
        return self._worker.busy

    async def run(self) -> None:
        """Work until `stop`; then finish or release what runs, and close the connections."""
        self._log.info("working", service=self._consumer.service, worker=self._consumer.consumer)
        try:
            await self._worker.run()
        finally:
            await self._consumer.close()
            await self._ledger.stop()
            await self._limits.stop()

    def stop(self) -> None:
        """Take no more jobs. A second call hurries those that run."""
        self._worker.stop()

    def fail_all(self, error: FoveaError, loop: asyncio.AbstractEventLoop) -> None:
        """Fail every running job for good, from another thread: this process ends, and no other is to try them."""
        asyncio.run_coroutine_threadsafe(self._worker.fail_all(error), loop).result(timeout=2.0)


def charge_jobs(handler: Handler, ledger: UsageLedger, limits: JobKeyLimits) -> Handler:
    """The handler, whose answers go into the ledger under the job's tenant and count against its key's tokens."""

    async def run(payload: Payload, ticket: Ticket) -> Result:
        await retry_until_connected(lambda: limits.require_usable(payload.headers))  # an outage uses up no attempt
        started, result = time.monotonic(), await handler(payload, ticket)
        if result.status < 400:
            told, is_stream = result.headers.get(USAGE_HEADER, ""), result.content_type.startswith("text/event-stream")
            scanner = UsageScanner(is_stream=is_stream, told=read_header(told))
            scanner.feed(result.body)
            spent = scanner.sum_up(time.monotonic() - started)
            ledger.add(payload.tenant, scanner.model or find_model(told.encode()), spent)
            await limits.spend(payload.headers, int(spent.get("tokens_in", 0) + spent.get("tokens_out", 0)))
        return result

    return run
