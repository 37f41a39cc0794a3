"""`fovea restore …`: restores many pictures, and saves each result with its facts.

A request that would take too long is sent again as a job, with its progress shown. A picture that fails is reported and
does not stop the others.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fovea import endpoints
from fovea.api.job import Job
from fovea.api.restore import RestoreIn, RestoreOut
from fovea.async_client import AsyncClient
from fovea.call import Call
from fovea.cli.common_options import Connection, GatewayOptions, Model
from fovea.cli.input_files import ImageSource, find_images
from fovea.cli.option_groups import expand_options
from fovea.cli.output import Screen
from fovea.cli.typed_options import add_request_options
from fovea.errors import DeadlineExceeded, FoveaError, InvalidOption

_SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@expand_options
def _restore(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to restore.")],
    options: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    reference: Annotated[
        Path | None, typer.Option(help="The same view without reflections, to score the result (PSNR, SSIM).")
    ] = None,
    model: Model = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Remove reflections from pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    For each picture NAME, writes NAME.restored.png (or its format) and NAME.json. The exit code is 1 if any failed.
    """
    batch = _RestoreBatch(output, gateway.screen, reference, {**options, "model": model})
    asyncio.run(_run(batch, sources, gateway))
    if batch.failed:
        raise typer.Exit(1)


restore = add_request_options(_restore, RestoreIn, without=frozenset({"image", "reference", "model", "picture"}))
"""The command with the options of every restoration model."""


@dataclass
class _RestoreBatch:
    """Restores pictures one after another, and saves the results."""

    output: Path
    screen: Screen
    reference: Path | None
    options: dict[str, Any] = field(default_factory=dict)
    failed: int = 0

    async def process(self, client: AsyncClient, image: ImageSource) -> None:
        """Restore one picture, save the result and print a line."""
        try:
            answer = await self._answer(client, self.build_call(await image.read()))
            files = await asyncio.to_thread(write_result, answer, self.output, image.stem)
        except FoveaError as error:
            self.failed += 1
            self.screen.error(error, about=image.name)
            return
        if self.screen.as_json:
            self.screen.line({"file": image.name, **build_facts(answer), "written": files})
        else:
            self.screen.text(f"{image.name}: {summarise(answer)}")

    async def _answer(self, client: AsyncClient, call: Call[RestoreOut]) -> RestoreOut:
        try:
            return await client.send(call)
        except DeadlineExceeded:
            job = await client.send(endpoints.as_job(call))
            self.screen.note(f"Continues as job {job.id}.")
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.screen.err, transient=True, disable=self.screen.as_json) as bar:
            row = bar.add_task("queued", total=1)

            def show(job: Job) -> None:
                bar.update(row, completed=job.progress or 0, description=job.note or job.status)

            await client.jobs.wait(job.id, on_change=show)
        return (await client.jobs.result(job.id)).parse(RestoreOut)

    def build_call(self, picture: bytes) -> Call[RestoreOut]:
        """Build the request for one picture."""
        pictures = {"image": picture, "reference": self.reference}
        return replace(endpoints.task("restore", self.options, pictures), read=endpoints.parse_as(RestoreOut))


async def _run(batch: _RestoreBatch, sources: list[str], connection: Connection) -> None:
    images = find_images(sources)
    if not images:
        raise InvalidOption(
            "No picture was given.", hint="Give files, folders, patterns, URLs, or - for standard input."
        )
    async with connection.open_async() as client:
        for image in images:  # one after another: each uses the whole machine
            await batch.process(client, image)


def write_result(answer: RestoreOut, folder: Path, stem: str) -> list[str]:
    """Write the pictures and facts of an answer to a folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{stem}.restored.{_SUFFIXES[answer.format]}": answer.restored,
        f"{stem}.reflection.png": answer.reflection,
        f"{stem}.comparison.jpg": answer.comparison,
        f"{stem}.json": (json.dumps(build_facts(answer), indent=2) + "\n").encode(),
    }
    written = {folder / name: content for name, content in files.items() if content is not None}
    for path, content in written.items():
        path.write_bytes(content)
    return [str(path) for path in written]


def build_facts(answer: RestoreOut) -> dict[str, Any]:
    """The facts of an answer, without its pictures."""
    return answer.model_dump(mode="json", exclude={"restored", "reflection", "comparison"}, exclude_none=True)


def summarise(answer: RestoreOut) -> str:
    """Summarise an answer in one line."""
    size, cost = f"{answer.width}×{answer.height}", answer.estimate
    if answer.restored is None and answer.reflection is None and answer.comparison is None:
        return f"{size} in {cost.tiles} tiles would take about {cost.seconds:.1f} s and {cost.memory_mib:,} MiB"
    line = f"{size}, {answer.variant}, changed by {100 * answer.mean_change:.1f} % of white"
    if answer.likeness is not None and answer.input_likeness is not None:
        before, after = (like.psnr for like in (answer.input_likeness, answer.likeness))
        line += f", {_format_db(before)} → {_format_db(after)}"
    return line


def _format_db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"
