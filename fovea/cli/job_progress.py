"""Progress of a job: a bar on standard error that follows the job to its end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fovea import endpoints
from fovea.api.job import Job
from fovea.call import Call
from fovea.cli.output import Screen
from fovea.client import Client
from fovea.errors import FoveaError, NotFound


def describe_state(job: Job) -> str:
    """Describe a job: its place in the queue, its note, its error or its status."""
    if job.status == "queued" and job.position:
        return f"queued, {job.position} ahead"
    return job.note or (str(job.error.get("detail", "")) if job.error else job.status)


def follow_job(
    client: Client, screen: Screen, job: Job, title: str | None = None, on_change: Callable[[Job], None] | None = None
) -> Job:
    """Show the progress of a job until it has ended, unless the output is JSON; returns its last state.

    `title` stands before the first event, else the job's state; `on_change` is called with each state.
    """
    percent = TextColumn("{task.percentage:>3.0f} %")
    job_id, columns = job.id, (TextColumn("{task.description}"), BarColumn(), percent, TimeElapsedColumn())
    with Progress(*columns, console=screen.err, transient=True, disable=screen.as_json) as progress:
        row = progress.add_task(escape(title or describe_state(job)), total=1.0)
        try:
            for state in client.jobs.events(job.id):
                job = state
                progress.update(row, completed=job.progress, description=escape(describe_state(job)))
                if on_change is not None:
                    on_change(job)
        except (FoveaError, KeyboardInterrupt) as error:
            follow, fetch = f"fovea jobs watch {job_id}", f"fovea jobs result {job_id} -o FILE"
            text = f"The job {job_id} goes on. Follow it: {follow}. Fetch its answer: {fetch}."
            if isinstance(error, FoveaError):
                error.hint = error.hint if isinstance(error, NotFound) else text
            else:
                Screen().note(f"{text} Cancel it: fovea jobs cancel {job_id}.")
            raise
    return job


def run_as_job(client: Client, screen: Screen, call: Call[Any], title: str | None = None) -> Any:
    """Send a call as a job, show its progress, and return its JSON result; see `follow_job`."""
    job = follow_job(client, screen, client.send(endpoints.as_job(call)), title=title)
    return client.jobs.result(job.id).json()


@contextlib.contextmanager
def job_result(client: Client, screen: Screen, call: Call[Any], title: str | None = None) -> Iterator[Any]:
    """Run a call as a job and lend its JSON result; what was saved needs no room among the tenant's jobs.

    The job is deleted at the end of the block, and stays where the block raises: its result can be fetched again.
    """
    job = follow_job(client, screen, client.send(endpoints.as_job(call)), title=title)
    yield client.jobs.result(job.id).json()
    with contextlib.suppress(FoveaError):
        client.jobs.delete(job.id)
