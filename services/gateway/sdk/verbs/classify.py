"""`fovea classify …`: what each of many pictures shows, whole or patch by patch, with the tinted picture beside.

Options are the model's own, read from its schema. One picture's failure is reported and does not stop the others.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from services.gateway.sdk.aclient import AsyncClient
from services.gateway.sdk.declared import declared
from services.gateway.sdk.flags import AsJson, Key, Model, Session, Url
from services.gateway.sdk.options import parsed, split
from services.gateway.sdk.screen import Screen
from services.gateway.sdk.sources import Source, sources
from services.gateway.sdk.transport import LOCAL
from services.gateway.sdk.verbs.several import several
from shared.api.classes import ClassifyIn, ClassifyOut
from shared.errors import FoveaError, InvalidOption

__all__ = ["SETTINGS", "classify"]

SETTINGS = {"ignore_unknown_options": True}
"""Options that only the served model knows are left among the words."""


def _classify(
    words: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to classify.")],
    options: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for NAME.json and the tinted NAME.classes.jpg.")
    ] = None,
    model: Model = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Pictures at a time.")] = 4,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Classify pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    Prints the class of each, or with --tile how many patches have which. The exit code is 1 if any failed.
    """
    batch = _Batch(output, Screen(as_json=as_json), options={**options, "model": model})
    asyncio.run(_run(batch, words, concurrency, Session(url, key)))
    if batch.failed:
        if not as_json:
            batch.screen.note(f"[red]{batch.failed} of {batch.total} failed.[/]")
        raise typer.Exit(1)


classify = declared(_classify, ClassifyIn, without=frozenset({"image", "model"}))
"""The verb with the options that every classifier takes; those of one model alone are read from its schema."""


@dataclass
class _Batch:
    """What one command does with its pictures."""

    output: Path | None
    screen: Screen
    total: int = 0
    failed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    async def one(self, client: AsyncClient, source: Source) -> None:
        """Classify one picture, write what was found where asked for, and say so."""
        try:
            picture = await source.read()
            answer = ClassifyOut.model_validate(await self._ask(client, picture))
            if self.output is not None:
                tinted = await self._ask(client, picture, accept="image/jpeg")
                await asyncio.to_thread(write, answer, tinted, self.output, source.stem)
        except FoveaError as error:
            self.failed += 1
            self.screen.error(error, about=source.said)
            return
        if self.screen.as_json:
            self.screen.line({"file": source.said, **answer.model_dump(mode="json")})
        else:
            self.screen.text(f"{source.said}: {summary(answer)}")

    async def _ask(self, client: AsyncClient, picture: bytes, accept: str | None = None) -> Any:
        return await client.run("classify", self.options, pictures={"image": picture}, accept=accept)


async def _run(batch: _Batch, words: list[str], concurrency: int, session: Session) -> None:
    async with session.aclient() as client:
        batch.options["model"] = batch.options["model"] or await client.default("classify")
        schema = (await client.model(batch.options["model"])).request_schema
        named, texts = split(words, schema)
        batch.options |= parsed(texts, schema)
        found = sources(named)
        if not found:
            raise InvalidOption("No picture was named.", hint="Name files, folders, patterns, URLs, or - for stdin.")
        batch.total = len(found)
        await several(
            [partial(batch.one, client, source) for source in found], concurrency, batch.screen, "classifying"
        )


def write(answer: ClassifyOut, tinted: bytes, folder: Path, stem: str) -> None:
    """Write the answer and the tinted picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(answer.model_dump(mode="json"), indent=1) + "\n", "utf8")
    (folder / f"{stem}.classes.jpg").write_bytes(tinted)


def summary(answer: ClassifyOut) -> str:
    """The classes of a whole picture with their probabilities, or the patches of each class."""
    if len(answer.results) == 1:
        return ", ".join(f"{each.label} {each.probability:.1%}" for each in answer.results[0].top)
    return ", ".join(f"{count} × {label}" for label, count in answer.counts.items())
