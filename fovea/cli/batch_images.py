"""A command over many pictures: what is the same whatever is done with each. Knows no task.

One picture's failure is reported and does not stop the others; the exit code says whether any failed.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import typer

from fovea.async_client import AsyncClient
from fovea.cli.common_options import Connection
from fovea.cli.concurrency import run_concurrently
from fovea.cli.input_files import ImageSource, find_images
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options, split_arguments
from shared.errors import FoveaError, InvalidOption

__all__ = ["CONTEXT_SETTINGS", "ImageBatch", "ImageResult"]

CONTEXT_SETTINGS = {"ignore_unknown_options": True}
"""Options that only the served model knows are left among the words."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What is said about one picture: facts for `--json`, a line for people."""

    facts: dict[str, Any]
    line: str


@dataclass
class ImageBatch(ABC):
    """One command's pictures.

    Class attributes:
        task: The deed, as in `/v1/<task>`.
        doing: What the progress bar says.
    """

    task: ClassVar[str]
    doing: ClassVar[str]

    screen: Screen
    options: dict[str, Any] = field(default_factory=dict)
    total: int = 0
    failed: int = 0

    @abstractmethod
    async def answer(self, client: AsyncClient, picture: bytes, stem: str) -> ImageResult:
        """Send one picture and write down what came back.

        Raises:
            FoveaError: It failed; the others go on.
        """

    def go(self, words: Sequence[str], concurrency: int, session: Connection) -> None:
        """Do all pictures that the words name; ends the program with 1 if any failed."""
        asyncio.run(self._run(list(words), concurrency, session))
        if self.failed:
            if not self.screen.as_json:
                self.screen.note(f"[red]{self.failed} of {self.total} failed.[/]")
            raise typer.Exit(1)

    async def named(self, client: AsyncClient, words: list[str]) -> list[str]:
        """Words that name pictures; the rest become options of the chosen model, read from its schema."""
        self.options["model"] = self.options["model"] or await client.default(self.task)
        schema = (await client.model(self.options["model"])).request_schema
        names, texts = split_arguments(words, schema)
        self.options |= parse_options(texts, schema)
        return names

    async def _run(self, words: list[str], concurrency: int, session: Connection) -> None:
        async with session.aclient() as client:
            found = find_images(await self.named(client, words))
            if not found:
                hint = "Name files, folders, patterns, URLs, or - for stdin."
                raise InvalidOption("No picture was named.", hint=hint)
            self.total = len(found)
            await run_concurrently(
                [partial(self._one, client, source) for source in found], concurrency, self.screen, self.doing
            )

    async def _one(self, client: AsyncClient, source: ImageSource) -> None:
        try:
            told = await self.answer(client, await source.read(), source.stem)
        except FoveaError as error:
            self.failed += 1
            self.screen.error(error, about=source.said)
            return
        if self.screen.as_json:
            self.screen.line({"file": source.said, **told.facts})
        else:
            self.screen.text(f"{source.said}: {told.line}")
