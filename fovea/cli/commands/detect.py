"""`fovea detect …`: boxes in each of many pictures, with the drawn picture beside, and as CSV, COCO, YOLO or crops.

Options are the model's own, read from its schema.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.async_client import AsyncClient
from fovea.cli.batch_images import CONTEXT_SETTINGS, ImageBatch, ImageResult
from fovea.cli.common_options import AsJson, Connection, Key, Model, Url
from fovea.cli.output import Screen
from fovea.cli.typed_options import add_request_options
from fovea.transport import LOCAL
from shared.api.boxes import DetectIn, DetectOut
from shared.errors import InvalidOption

__all__ = ["CONTEXT_SETTINGS", "detect"]

FORMS = {
    "csv": ("csv", "text/csv"),
    "coco": ("coco.json", "application/vnd.coco+json"),
    "yolo": ("txt", "text/plain"),
    "crops": ("crops.zip", "application/zip"),
}
"""Further forms of an answer: how the file's name ends, and the content type."""


def _detect(
    words: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to search.")],
    options: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for NAME.json and the drawn NAME.boxes.jpg.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Further files in that folder: csv, coco, yolo, crops.")
    ] = None,
    model: Model = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, max=64, help="Pictures at a time.")] = 4,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Find objects in pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    Prints how many of each class were found. The exit code is 1 if any failed.
    """
    forms = _forms(also or (), output)
    wanted = _Detected(Screen(as_json=as_json), {**options, "model": model}, output=output, forms=forms)
    wanted.go(words, concurrency, Connection(url, key))


detect = add_request_options(_detect, DetectIn, without=frozenset({"image", "model", "include"}))
"""The verb with the options that every detector takes; those of one model alone are read from its schema."""


@dataclass
class _Detected(ImageBatch):
    """The boxes in each picture, written down in the forms asked for."""

    task = "detect"
    doing = "detecting"

    output: Path | None = None
    forms: dict[str, str] = field(default_factory=dict)

    async def answer(self, client: AsyncClient, picture: bytes, stem: str) -> ImageResult:
        """Search one picture."""
        answer = DetectOut.model_validate(await self._ask(client, picture))
        if self.output is not None:
            files = {end: await self._ask(client, picture, accept=media) for end, media in self.forms.items()}
            await asyncio.to_thread(write_result, answer, files, self.output, stem)
        return ImageResult(answer.model_dump(mode="json"), summarise(answer))

    async def _ask(self, client: AsyncClient, picture: bytes, accept: str | None = None) -> Any:
        return await client.run(self.task, self.options, pictures={"image": picture}, accept=accept)


def _forms(also: Sequence[str], output: Path | None) -> dict[str, str]:
    """How files' names end → the content type to ask for.

    Raises:
        InvalidOption: There is no such form, or no folder to write it to.
    """
    if unknown := [form for form in also if form not in FORMS]:
        raise InvalidOption(f"There is no form {unknown[0]!r}.", hint=f"Forms are {', '.join(FORMS)}.", field="also")
    if also and output is None:
        raise InvalidOption("Files need a folder.", hint="Name one with --output.", field="also")
    return {"boxes.jpg": "image/jpeg", **{FORMS[form][0]: FORMS[form][1] for form in also}}


def write_result(answer: DetectOut, files: Mapping[str, bytes], folder: Path, stem: str) -> None:
    """Write the answer and its other forms."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(answer.model_dump(mode="json"), indent=1) + "\n", "utf8")
    for end, content in files.items():
        (folder / f"{stem}.{end}").write_bytes(content)


def summarise(answer: DetectOut) -> str:
    """How many of each class, for people."""
    told = ", ".join(f"{count} × {label}" for label, count in answer.counts.items())
    return told or "nothing found"
