"""`fovea jobs …`: lists, follows, cancels, deletes and retries queued requests."""

from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape

from fovea import endpoints
from fovea.api.job import Job
from fovea.cli.common_options import Connection, GatewayOptions, OutputFile
from fovea.cli.job_progress import describe_state, follow_job
from fovea.cli.option_groups import CommandApp
from fovea.cli.output import Screen, colour_status, format_age
from fovea.cli.text_files import write_file

app = CommandApp(help="List, follow, cancel, delete and retry queued requests.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, as `fovea jobs list` prints it.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of jobs.")] = 20,
    dead: Annotated[bool, typer.Option("--dead", help="Only jobs that failed on every attempt.")] = False,
    after: Annotated[str | None, typer.Option(help="Only those behind the job of this id: the next page.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """List jobs, newest first."""
    screen, found = gateway.screen, gateway.send(endpoints.jobs(limit, dead=dead, after=after))
    if screen.wrote(*found):
        return
    if found:
        screen.table(("id", "status", "request", "progress", "age", "note"), map(_row, found), head=False)
    else:
        screen.note("No such jobs." if dead or after else "No jobs. Queue any request with `fovea run … --job`.")


@app.command()
def get(job_id: JobId, *, gateway: GatewayOptions) -> None:
    """Show one job."""
    _print(gateway.screen, gateway.send(endpoints.job(job_id)))


@app.command()
def watch(job_id: JobId, *, gateway: GatewayOptions) -> None:
    """Follow a job to its end; the exit code says whether it succeeded."""
    screen = gateway.screen
    with gateway.open() as client:
        last = follow_job(client, screen, client.jobs.get(job_id), on_change=screen.line if screen.as_json else None)
    if not screen.as_json:
        _print(screen, last)
    if last.status != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: JobId, *, gateway: GatewayOptions) -> None:
    """Cancel a job, also while it runs."""
    _print(gateway.screen, gateway.send(endpoints.cancel(job_id)))


@app.command()
def delete(job_id: JobId, *, gateway: GatewayOptions) -> None:
    """Forget a finished job with its answer; cancel one that is not over."""
    _print(gateway.screen, gateway.send(endpoints.delete(job_id)))


@app.command()
def retry(job_id: JobId, *, gateway: GatewayOptions) -> None:
    """Queue a failed or cancelled job again."""
    _print(gateway.screen, gateway.send(endpoints.retry(job_id)))


@app.command()
def result(job_id: JobId, output: OutputFile = None, *, gateway: Connection) -> None:
    """Write the answer of a finished job, byte for byte."""
    found = gateway.send(endpoints.result(job_id))
    write_file(output, found.content)
    if output is not None:
        Screen().note(f"wrote {output} ({found.content_type}, {len(found.content):,} bytes)", markup=False)


def _print(screen: Screen, job: Job) -> None:
    if screen.wrote(job):
        return
    screen.title(f"[bold]{job.id}[/]  {colour_status(job.status)}{' (dead letter)' if job.dead else ''}")
    error = job.error or {}
    screen.facts({
        **({"job": job.id, "status": job.status} if screen.form == "csv" else {}),  # which has no title
        "request": f"{job.path} ({job.service})", "progress": f"{job.progress:.0%}", "note": job.note,
        "ahead": job.position, "deliveries": job.attempts, "created": _format_time(job.created),
        "finished": _format_time(job.finished), "expires": _format_time(job.expires),
        "error": error.get("detail"), "hint": error.get("hint"),
    })  # fmt: skip


def _row(job: Job) -> tuple[str, ...]:
    age = format_age(job.created.timestamp())
    return job.id, colour_status(job.status), escape(job.path), f"{job.progress:.0%}", age, escape(describe_state(job))


def _format_time(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""
