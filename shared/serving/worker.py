"""`python -m shared.serving.worker SERVICE`: runs the service's jobs until SIGTERM, then hands back unfinished ones.

Holds about 60 MB until its first job loads the models.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvloop

from shared import telemetry
from shared.api.usage import USAGE_HEADER, UsageScanner, read_header
from shared.errors import TooLarge
from shared.jobs.consumer import QueueConsumer
from shared.jobs.key_limits import JobKeyLimits
from shared.jobs.queue import Handler, Payload, Result, Ticket
from shared.jobs.usage_ledger import UsageLedger
from shared.jobs.worker import JobWorker
from shared.serving.job_handler import AsgiJobHandler
from shared.serving.memory_guard import EXIT_STATUS, MemoryGuard, find_memory_limit
from shared.serving.metrics_server import MetricsServer
from shared.serving.watchdog import LoopTimer, bound_memory
from shared.settings import Settings, settings
from shared.storage.private_files import make_files_private

if TYPE_CHECKING:
    from starlette.applications import Starlette


def main(
    service: Annotated[str, typer.Argument(help="The service whose jobs to run, for example medical-seg.")],
    app: Annotated[str | None, typer.Option(help="`module:name` of another app than the service's own.")] = None,
) -> None:
    """Run one service's jobs until SIGTERM or Ctrl-C."""
    config = settings()
    telemetry.configure_logs(config.log_level, config.log_format)
    telemetry.configure_tracing(config.traces_endpoint, f"fovea-{service}")
    make_files_private(config.data_dir)
    if config.redis_url is None:
        typer.echo("A worker needs FOVEA_REDIS_URL. `fovea up` starts Redis and sets it.", err=True)
        raise typer.Exit(2)
    uvloop.run(_work(service, config, app, config.redis_url))


async def _work(service: str, config: Settings, app: str | None, url: str) -> NoReturn:
    consumer, handler = QueueConsumer(url, service, config), AsgiJobHandler(lambda: _load(service, app))
    ledger, limits = UsageLedger(url), JobKeyLimits(url)
    worker = JobWorker(consumer, charge_jobs(handler, ledger, limits), config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.stop)
    metrics = MetricsServer(config.replica_host, config.metrics_port)
    metrics.start()
    guard, timer = _guard_memory(worker, config), LoopTimer()
    bound_memory(guard.limit)
    timer.start()
    logger, code = telemetry.log("jobs"), 0
    logger.info("working", service=service, worker=consumer.consumer)
    try:
        await worker.run()
    except Exception:
        logger.exception("the worker broke; its jobs go to others when their leases end")
        code = 1
    guard.stop()
    timer.stop()
    await asyncio.wait({asyncio.create_task(handler.close())}, timeout=config.shutdown_grace_s)
    await consumer.close()
    await metrics.stop()
    await ledger.stop()
    await limits.stop()
    logger.info("stopped", service=service)
    telemetry.shut_down_tracing()
    # A model's thread that ignores cancellation can't be stopped, and Python would wait for it for ever.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def charge_jobs(handler: Handler, ledger: UsageLedger, limits: JobKeyLimits) -> Handler:
    """The handler, whose answers go into the ledger under the job's tenant and count against its key's tokens."""

    async def run(payload: Payload, ticket: Ticket) -> Result:
        await limits.require_usable(payload.headers)
        started = time.monotonic()
        result = await handler(payload, ticket)
        if result.status < 400:
            scanner = UsageScanner(is_stream=result.content_type.startswith("text/event-stream"))
            scanner.feed(result.body)
            spent = scanner.sum_up(time.monotonic() - started)
            ledger.add(payload.tenant, scanner.model, {**read_header(result.headers.get(USAGE_HEADER)), **spent})
            await limits.spend(payload.headers, int(spent.get("tokens_in", 0) + spent.get("tokens_out", 0)))
        return result

    return run


def _guard_memory(worker: JobWorker, config: Settings) -> MemoryGuard:
    """End this process when it outgrows its memory; the jobs that run fail, since the next worker would die of them."""
    loop = asyncio.get_running_loop()
    detail = "The worker ran out of memory on this job."
    error = TooLarge(detail, hint="Send less at a time, or raise FOVEA_REPLICA_MEMORY_BYTES of the workers.")

    def end() -> None:
        telemetry.log("jobs").error("out of memory: this worker ends itself, and its jobs fail")
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(worker.fail_all(error), loop).result(timeout=2.0)
        os._exit(EXIT_STATUS)

    return MemoryGuard(find_memory_limit(config), end)


def _load(service: str, app: str | None) -> Starlette:
    # Imported at the first job, so that an idle worker holds no web framework and no model.
    loaded: Starlette = importlib.import_module("shared.serving.replica").load_app(service, app)
    return loaded


if __name__ == "__main__":
    typer.run(main)
