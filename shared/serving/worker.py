"""`python -m shared.serving.worker SERVICE`: runs the service's jobs until SIGTERM, then hands back what is unfinished.

Wires the queue's worker loop to the service's app. Holds about 60 MB until its first job loads the models.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvloop

from shared import telemetry
from shared.jobs.consumer import QueueConsumer
from shared.jobs.worker import JobWorker
from shared.serving.job_handler import AsgiJobHandler
from shared.settings import Settings, settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["main"]


def main(
    service: Annotated[str, typer.Argument(help="The service whose jobs to run, for example medical-seg.")],
    app: Annotated[str | None, typer.Option(help="`module:name` of another app than the service's own.")] = None,
) -> None:
    """Run one service's jobs until SIGTERM or Ctrl-C."""
    chosen = settings()
    telemetry.configure_logs(chosen.log_level, chosen.log_format)
    if chosen.redis_url is None:
        typer.echo("A worker needs FOVEA_REDIS_URL. `fovea up` starts Redis and sets it.", err=True)
        raise typer.Exit(2)
    uvloop.run(_work(service, chosen, app, chosen.redis_url))


async def _work(service: str, chosen: Settings, app: str | None, url: str) -> NoReturn:
    inbox, replay = QueueConsumer(url, service, chosen), AsgiJobHandler(lambda: _load(service, app))
    worker = JobWorker(inbox, replay, chosen)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.stop)
    logger, code = telemetry.log("jobs"), 0
    logger.info("working", service=service, worker=inbox.consumer)
    try:
        await worker.run()
    except Exception:
        logger.exception("the worker broke; its jobs go to others when their leases end")
        code = 1
    await asyncio.wait({asyncio.create_task(replay.close())}, timeout=chosen.shutdown_grace_s)
    await inbox.close()
    logger.info("stopped", service=service)
    # A model's thread that does not listen can't be stopped from inside, and Python would wait for it for ever.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _load(service: str, app: str | None) -> Starlette:
    # Imported at the first job, so that an idle worker holds no web framework and no model.
    loaded: Starlette = importlib.import_module("shared.serving.replica").load_app(service, app)
    return loaded


if __name__ == "__main__":
    typer.run(main)
