"""Batch of images: runs a command over many pictures, several at a time, whatever is done with each.

A picture that fails is reported and does not stop the others; the exit code is then 1, or that of the error if all
failed alike.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fovea.async_client import AsyncClient
from fovea.cli.common_options import Connection
from fovea.cli.exit_codes import OUTCOME, choose_exit_code
from fovea.cli.input_files import ImageSource, find_images
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options, split_arguments
from fovea.errors import FoveaError, InvalidOption

Found = TypeVar("Found")
Concurrency = Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Pictures at a time.")]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The printed result of one picture: facts for `--json`, a line for people."""

    facts: dict[str, Any]
    line: str


@dataclass
class ImageBatch(ABC):
    """The pictures of one command, and the folder that is written to.

    Without a `progress_label` there is no progress bar. The command sets `own_options` of the model itself.
    """

    task: ClassVar[str]
    progress_label: ClassVar[str]
    own_options: ClassVar[frozenset[str]] = frozenset({"image"})

    screen: Screen
    options: dict[str, Any] = field(default_factory=dict)
    output: Path | None = None
    reserved_stems: Sequence[str] = ()
    total: int = 0
    failed: int = 0
    exit_codes: set[int] = field(default_factory=set)

    @abstractmethod
    async def answer(self, client: AsyncClient, picture: bytes, image: ImageSource) -> ImageResult:
        """Send one picture and save what came back. Raises FoveaError: it failed; the others go on."""

    async def run_task(self, client: AsyncClient, picture: bytes, accept: str | None = None) -> Any:
        """Return the JSON answer to one picture, or its bytes in another form."""
        return await client.run(self.task, self.options, pictures={"image": picture}, accept=accept)

    async def save(self, stem: str, files: Mapping[str, bytes | str | None]) -> list[str]:
        """Write files of one stem, such as a picture's, where there is a folder; return them."""
        return [] if self.output is None else await asyncio.to_thread(write_files, self.output, stem, files)

    def run(self, arguments: Sequence[str], concurrency: int, connection: Connection) -> None:
        """Process all pictures that the arguments name; ends the program with an exit code if any failed."""
        if self.screen.form in {"tsv", "csv"}:
            raise InvalidOption("Findings can't be table rows.", hint="Use --format json; detect also has --also csv.")
        asyncio.run(self._run(list(arguments), concurrency, connection))
        if self.failed:
            if not self.screen.as_json:
                self.screen.note(f"[red]{self.failed} of {self.total} failed.[/]")
            alike = self.failed == self.total and len(self.exit_codes) == 1
            raise typer.Exit(self.exit_codes.pop() if alike else OUTCOME)

    async def finish(self) -> None:  # noqa: B027  # most commands write a picture at a time
        """Write what belongs to all pictures together."""

    async def parse_arguments(self, client: AsyncClient, arguments: list[str]) -> list[str]:
        """Split the arguments into names of pictures, which are returned, and options of the model, by its schema."""
        self.options["model"] = self.options["model"] or await client.default_model(self.task)
        schema = (await client.model(self.options["model"])).request_schema
        names, texts = split_arguments(arguments, schema)
        if own := [name for name, _ in texts if name in self.own_options]:
            hint = f"Give pictures as arguments. `fovea run {self.task}` takes all options of the model."
            raise InvalidOption(f"`fovea {self.task}` sets {own[0]} itself.", hint=hint, field=own[0])
        self.options |= parse_options(texts, schema)
        return names

    async def _run(self, arguments: list[str], concurrency: int, connection: Connection) -> None:
        async with connection.open_async() as client:
            images = find_images(await self.parse_arguments(client, arguments), self.reserved_stems)
            if not images:
                hint = "Give files, folders, patterns, URLs, or - for standard input."
                raise InvalidOption("No picture was given.", hint=hint)
            self.total = len(images)
            actions = [partial(self._process, client, image) for image in images]
            await run_concurrently(actions, concurrency, self.screen, self.progress_label)
            await self.finish()

    async def _process(self, client: AsyncClient, image: ImageSource) -> None:
        try:
            result = await self.answer(client, await image.read(), image)
        except FoveaError as error:
            self.failed += 1
            self.exit_codes.add(choose_exit_code(error))
            self.screen.error(error, about=image.name)
            return
        if not self.screen.wrote({"file": image.name, **result.facts}):
            self.screen.text(f"{image.name}: {result.line}")
            for warning in result.facts.get("warnings", ()):
                self.screen.err.print(f"{image.name}: {warning}", style="yellow", markup=False)


async def run_concurrently(
    actions: Sequence[Callable[[], Awaitable[None]]], concurrency: int, screen: Screen, label: str
) -> None:
    """Run all actions, at most `concurrency` at a time, behind a progress bar if there is a label."""
    limit = asyncio.Semaphore(concurrency)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_quiet = screen.as_json or len(actions) == 1 or not label
    with Progress(*columns, console=screen.err, transient=True, disable=is_quiet) as progress:
        row = progress.add_task("", total=len(actions))

        async def run_limited(action: Callable[[], Awaitable[None]]) -> None:
            async with limit:
                await action()
            progress.advance(row)

        await asyncio.gather(*map(run_limited, actions))


def shorten_names(found: Mapping[str, Found]) -> dict[str, Found]:
    """Return findings by the file names of their sources; shared names stay as given, with their folders."""
    counts = Counter(Path(name).name for name in found)
    return {Path(name).name if counts[Path(name).name] == 1 else name: value for name, value in found.items()}


def write_files(folder: Path, stem: str, files: Mapping[str, bytes | str | None]) -> list[str]:
    """Write what there is as `STEM.ENDING` to a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {folder / f"{stem}.{end}": content for end, content in files.items() if content is not None}
    for path, content in written.items():
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(map(str, written))
