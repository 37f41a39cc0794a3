"""`fovea segment …`: any number of pictures, several at a time; mask, overlay and numbers of each are written down.

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

from services.gateway.sdk import surface
from services.gateway.sdk.aclient import AsyncClient
from services.gateway.sdk.call import Call
from services.gateway.sdk.declared import declared
from services.gateway.sdk.flags import AsJson, Key, Model, Session, Url
from services.gateway.sdk.options import parsed, split
from services.gateway.sdk.screen import Screen
from services.gateway.sdk.sources import Source, sources
from services.gateway.sdk.transport import LOCAL
from services.gateway.sdk.verbs.several import several
from shared.api.mask import SegmentIn, SegmentOut
from shared.errors import FoveaError, InvalidOption

__all__ = ["SETTINGS", "segment"]

SETTINGS = {"ignore_unknown_options": True}
"""Options that only the served model knows are left among the words."""

_WRITTEN = ("mask", "contours", "overlay")


def _segment(
    words: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to segment.")],
    options: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    model: Model = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Pictures at a time.")] = 4,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Segment pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    For each picture NAME, writes NAME.mask.png, NAME.overlay.jpg and NAME.json. The exit code is 1 if any failed.
    """
    batch = _Batch(output, Screen(as_json=as_json), options={**options, "model": model})
    asyncio.run(_run(batch, words, concurrency, Session(url, key)))
    if batch.failed:
        if not as_json:
            batch.screen.note(f"[red]{batch.failed} of {batch.total} failed.[/]")
        raise typer.Exit(1)


segment = declared(_segment, SegmentIn, without=frozenset({"image", "model", "include"}))
"""The verb with the options that every segmentation model takes; those of one model alone are read from its schema."""


@dataclass
class _Batch:
    """What one command does with its pictures."""

    output: Path
    screen: Screen
    total: int = 0
    failed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    async def one(self, client: AsyncClient, source: Source) -> None:
        """Segment one picture, write what was found, and say so."""
        try:
            answer = await client.send(self.call(await source.read()))
            files = await asyncio.to_thread(write, answer, self.output, source.stem)
        except FoveaError as error:
            self.failed += 1
            self.screen.error(error, about=source.said)
            return
        if self.screen.as_json:
            self.screen.line({"file": source.said, **facts(answer), "written": files})
        else:
            self.screen.text(f"{source.said}: {_summary(answer)} → {self.output / source.stem}.*")

    def call(self, picture: bytes) -> Call[SegmentOut]:
        """The request for one picture."""
        return surface.segment(picture, None, {**self.options, "include": _WRITTEN})


async def _run(batch: _Batch, words: list[str], concurrency: int, session: Session) -> None:
    async with session.aclient() as client:
        batch.options["model"] = batch.options["model"] or await client.default("segment")
        schema = (await client.model(batch.options["model"])).request_schema
        named, texts = split(words, schema)
        batch.options |= parsed(texts, schema)
        found = sources(named)
        if not found:
            raise InvalidOption("No picture was named.", hint="Name files, folders, patterns, URLs, or - for stdin.")
        batch.total = len(found)
        deeds = [partial(batch.one, client, source) for source in found]
        await several(deeds, concurrency, batch.screen, "segmenting")


def write(answer: SegmentOut, folder: Path, stem: str) -> list[str]:
    """Write mask, overlay and facts of an answer; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, bytes] = {folder / f"{stem}.json": _lines(facts(answer)).encode()}
    if answer.mask is not None:
        files[folder / f"{stem}.mask.png"] = answer.mask
    if answer.overlay is not None:
        files[folder / f"{stem}.overlay.jpg"] = answer.overlay
    for path, content in files.items():
        path.write_bytes(content)
    return [str(path) for path in files]


def facts(answer: SegmentOut) -> dict[str, Any]:
    """What an answer says beside its pictures."""
    return answer.model_dump(mode="json", exclude={"mask", "overlay", "probability"}, exclude_none=True)


def _lines(told: dict[str, Any]) -> str:
    """JSON with one line per fact: contours have thousands of numbers."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in told.items()) + "\n}\n"


def _summary(answer: SegmentOut) -> str:
    if answer.empty:
        return f"nothing found (highest probability {answer.max_probability:.2f})"
    regions = "1 region" if answer.component_count == 1 else f"{answer.component_count} regions"
    return f"{answer.area_percent:.1f} % in {regions}, probability {answer.mean_probability:.2f}"
