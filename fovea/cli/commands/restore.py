"""`fovea restore …`: restores many pictures, and saves each result with its facts.

A request that would take too long is sent again as a job, with its progress shown.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fovea import endpoints
from fovea.api.job import Job
from fovea.api.restore import RestoreIn, RestoreOut
from fovea.async_client import AsyncClient
from fovea.call import Call, parse_as
from fovea.cli.batch_images import ImageBatch, ImageResult
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.input_files import ImageSource
from fovea.cli.option_groups import add_request_options
from fovea.errors import DeadlineExceeded

_SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


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
    batch = _RestoreBatch(gateway.screen, {**options, "model": model}, output=output, reference=reference)
    batch.run(sources, 1, gateway)  # one after another: each uses the whole machine


restore = add_request_options(_restore, RestoreIn, without=frozenset({"image", "reference", "model", "picture"}))
"""The command with the options of every restoration model."""


@dataclass
class _RestoreBatch(ImageBatch):
    task = "restore"
    progress_label = ""  # each long picture has a bar of its own

    reference: Path | None = None

    async def parse_arguments(self, client: AsyncClient, arguments: list[str]) -> list[str]:
        return arguments

    async def answer(self, client: AsyncClient, picture: bytes, image: ImageSource) -> ImageResult:
        answer = await self._send(client, self.build_call(picture))
        written = await self.save(image.stem, list_files(answer))
        return ImageResult({**build_facts(answer), "written": written}, summarise(answer))

    async def _send(self, client: AsyncClient, call: Call[RestoreOut]) -> RestoreOut:
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
        return replace(endpoints.task("restore", self.options, pictures), read=parse_as(RestoreOut))


def list_files(answer: RestoreOut) -> dict[str, bytes | str | None]:
    """The pictures and facts of an answer by the ending of their file."""
    return {
        f"restored.{_SUFFIXES[answer.format]}": answer.restored,
        "reflection.png": answer.reflection,
        "comparison.jpg": answer.comparison,
        "json": json.dumps(build_facts(answer), indent=2) + "\n",
    }


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
        ratios = (like.psnr for like in (answer.input_likeness, answer.likeness))
        line += ", " + " → ".join("equal" if ratio is None else f"{ratio:.1f} dB" for ratio in ratios)
    return line
