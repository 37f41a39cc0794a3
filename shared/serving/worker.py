"""`python -m shared.serving.worker SERVICE`: sends a service's jobs to its replicas until SIGTERM.

Holds no models: about 50 MB. What is unfinished when it stops goes to other workers.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer
import uvloop

from fovea.errors import TooLarge
from shared import telemetry
from shared.serving.jobs.job_runner import JobRunner
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.serving.jobs.replica_handler import ReplicaJobHandler
from shared.serving.memory_guard import EXIT_STATUS, MemoryGuard, build_guard
from shared.serving.metrics_server import MetricsServer
from shared.serving.watchdog import LoopTimer, bound_memory
from shared.settings import Settings, settings
from shared.storage.private_files import make_files_private


def main(
    service: Annotated[str, typer.Argument(help="The service whose jobs to run, for example medical-seg.")],
) -> None:
    """Send one service's jobs to its replicas until SIGTERM or Ctrl-C."""
    config = settings()
    telemetry.configure_logs(config.log_level, config.log_format)
    telemetry.configure_tracing(config.traces_endpoint, f"fovea-{service}")
    make_files_private(config.data_dir)
    if config.redis_url is None:
        typer.echo("A worker needs FOVEA_REDIS_URL. `fovea up` starts Redis and sets it.", err=True)
        raise typer.Exit(2)
    uvloop.run(_work(service, config, config.redis_url))


async def _work(service: str, config: Settings, url: str) -> NoReturn:
    handler = ReplicaJobHandler(ReplicaDirectory(url, service, config.service_version), config)
    runner = JobRunner(url, service, handler, config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, runner.stop)
    metrics = MetricsServer(config.replica_host, config.metrics_port)
    metrics.start()
    guard, timer = _guard_memory(runner, config), LoopTimer()
    bound_memory(guard.limit)
    timer.start()
    logger, code = telemetry.log("jobs"), 0
    try:
        await runner.run()
    except Exception:
        logger.exception("the worker broke; its jobs go to others when their leases end")
        code = 1
    guard.stop()
    timer.stop()
    await handler.close()
    await metrics.stop()
    logger.info("stopped", service=service)
    telemetry.shut_down_tracing()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _guard_memory(runner: JobRunner, config: Settings) -> MemoryGuard:
    """End this process when it outgrows its memory; the jobs that run fail, since the next worker would die of them."""
    loop, detail = asyncio.get_running_loop(), "The worker ran out of memory on this job."
    error = TooLarge(detail, hint="Send less at a time, or raise FOVEA_REPLICA_MEMORY_BYTES of the workers.")

    def end() -> None:
        telemetry.log("jobs").error("out of memory: this worker ends itself, and its jobs fail")
        with contextlib.suppress(Exception):
            runner.fail_all(error, loop)
        os._exit(EXIT_STATUS)

    return build_guard(config, end)


if __name__ == "__main__":
    typer.run(main)
