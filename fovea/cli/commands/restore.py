"""`fovea restore …`: any number of pictures; each result is written beside its facts.

What would take longer than a request may is sent again as a job, with its progress shown.

Options are the request's own, read from its wire type. One picture's failure is reported and does not stop the others.
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
from fovea.async_client import AsyncClient
from fovea.call import Call
from fovea.cli.common_options import AsJson, Connection, Key, Model, Url
from fovea.cli.input_files import ImageSource, find_images
from fovea.cli.output import Screen
from fovea.cli.typed_options import add_request_options
from fovea.transport import LOCAL
from shared.api.job import Job
from shared.api.restore import RestoreIn, RestoreOut
from shared.errors import DeadlineExceeded, FoveaError, InvalidOption

__all__ = ["restore"]

_ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


def _restore(
    words: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to restore.")],
    options: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    reference: Annotated[
        Path | None, typer.Option(help="The view without reflections: says how like it results are.")
    ] = None,
    model: Model = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Take reflections out of pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    For each picture NAME, writes NAME.restored.png (or its format) and NAME.json. The exit code is 1 if any failed.
    """
    work = _Work(output, Screen(as_json=as_json), reference, {**options, "model": model})
    asyncio.run(_run(work, words, Connection(url, key)))
    if work.failed:
        raise typer.Exit(1)


restore = add_request_options(_restore, RestoreIn, without=frozenset({"image", "reference", "model", "picture"}))
"""The verb with the options that restoring takes."""


@dataclass
class _Work:
    """What one command does with its pictures."""

    output: Path
    screen: Screen
    reference: Path | None
    options: dict[str, Any] = field(default_factory=dict)
    failed: int = 0

    async def one(self, client: AsyncClient, source: ImageSource) -> None:
        """Restore one picture, write the result, and say so."""
        try:
            answer = await self._answer(client, self.call(await source.read()))
            files = await asyncio.to_thread(write_result, answer, self.output, source.stem)
        except FoveaError as error:
            self.failed += 1
            self.screen.error(error, about=source.said)
            return
        if self.screen.as_json:
            self.screen.line({"file": source.said, **build_facts(answer), "written": files})
        else:
            self.screen.text(f"{source.said}: {summarise(answer)}")

    async def _answer(self, client: AsyncClient, call: Call[RestoreOut]) -> RestoreOut:
        try:
            return await client.send(call)
        except DeadlineExceeded:
            job = await client.send(endpoints.as_job(call))
            self.screen.note(f"Goes on as job {job.id}.")
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.screen.err, transient=True, disable=self.screen.as_json) as bar:
            row = bar.add_task("queued", total=1)

            def show(news: Job) -> None:
                bar.update(row, completed=news.progress or 0, description=news.note or news.status)

            await client.jobs.wait(job.id, on_change=show)
        return (await client.jobs.result(job.id)).parse(RestoreOut)

    def call(self, picture: bytes) -> Call[RestoreOut]:
        """The request for one picture."""
        pictures = {"image": picture, "reference": self.reference}
        return replace(endpoints.task("restore", self.options, pictures), read=endpoints.parse_as(RestoreOut))


async def _run(work: _Work, words: list[str], session: Connection) -> None:
    found = find_images(words)
    if not found:
        raise InvalidOption("No picture was named.", hint="Name files, folders, patterns, URLs, or - for stdin.")
    async with session.aclient() as client:
        for source in found:  # one after another: each takes all that a machine has
            await work.one(client, source)


def write_result(answer: RestoreOut, folder: Path, stem: str) -> list[str]:
    """Write the pictures and facts of an answer; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        f"{stem}.restored.{_ENDINGS[answer.format]}": answer.restored,
        f"{stem}.reflection.png": answer.reflection,
        f"{stem}.comparison.jpg": answer.comparison,
        f"{stem}.json": (json.dumps(build_facts(answer), indent=2) + "\n").encode(),
    }
    written = {folder / name: content for name, content in named.items() if content is not None}
    for path, content in written.items():
        path.write_bytes(content)
    return [str(path) for path in written]


def build_facts(answer: RestoreOut) -> dict[str, Any]:
    """What an answer says beside its pictures."""
    return answer.model_dump(mode="json", exclude={"restored", "reflection", "comparison"}, exclude_none=True)


def summarise(answer: RestoreOut) -> str:
    """An answer in one line."""
    size, cost = f"{answer.width}×{answer.height}", answer.estimate
    if answer.restored is None and answer.reflection is None and answer.comparison is None:
        return f"{size} in {cost.tiles} tiles would take about {cost.seconds:.1f} s and {cost.memory_mib:,} MiB"
    told = f"{size}, {answer.variant}, changed by {100 * answer.mean_change:.1f} % of white"
    if answer.likeness is not None and answer.input_likeness is not None:
        before, after = (like.psnr for like in (answer.input_likeness, answer.likeness))
        told += f", {_db(before)} → {_db(after)}"
    return told


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"
