"""Embedded jobs: a replica runs the jobs of its service itself, next to its requests and on the same models."""

import asyncio
import contextlib

from fovea.errors import TooLarge
from shared.serving.host import Host
from shared.serving.jobs.host_handler import HostJobHandler
from shared.serving.jobs.job_runner import JobRunner
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.serving.jobs.replica_handler import ReplicaJobHandler
from shared.settings import Settings
from shared.telemetry import log

_RESTART_S = 1.0  # pause before a runner that broke is replaced


class EmbeddedJobs:
    """The jobs that one replica runs. Belongs to the replica's event loop."""

    def __init__(self, url: str, host: Host, settings: Settings) -> None:
        self._url, self._host, self._settings = url, host, settings
        self._runner: JobRunner | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._loop = asyncio.get_running_loop()

    @property
    def busy(self) -> int:
        """Jobs that run."""
        return self._runner.busy if self._runner is not None else 0

    def start(self) -> None:
        """Take jobs from now on, in the background."""
        self._task = asyncio.create_task(self._run())

    def stop_taking(self) -> None:
        """Take no more jobs; those that run are finished."""
        self._is_stopping = True
        if self._runner is not None:
            self._runner.stop()
        elif self._task is not None:
            self._task.cancel()  # it still waits for the models

    async def stop(self) -> None:
        """Finish what runs for up to `shutdown_grace_s`, and release the rest to other workers."""
        if self._task is not None:
            if not self._is_stopping:
                self.stop_taking()
            await asyncio.wait([self._task])

    def fail_all(self) -> None:
        """Fail the jobs that run, from another thread: this process dies of one of them, and the next would, too."""
        error = TooLarge(
            "The replica ran out of memory on this job.",
            hint="Send less at a time, or raise FOVEA_REPLICA_MEMORY_BYTES of the replicas.",
        )
        if self._runner is not None:
            with contextlib.suppress(Exception):
                self._runner.fail_all(error, self._loop)

    async def _run(self) -> None:
        """Run jobs until told to stop; a runner that breaks is replaced, and its jobs come back with their leases."""
        await self._host.wait_until_loaded()
        others = ReplicaJobHandler(
            ReplicaDirectory(self._url, self._host.service, self._settings.service_version), self._settings
        )
        while not self._is_stopping:
            self._runner = JobRunner(self._url, self._host.service, HostJobHandler(self._host, others), self._settings)
            try:
                await self._runner.run()
            except Exception:  # noqa: BLE001  # whatever broke, the replica serves on and jobs must not wait for ever
                log("jobs").exception("running jobs broke; it begins again")
                await asyncio.sleep(_RESTART_S)
        await others.close()
