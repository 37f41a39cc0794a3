"""`fovea detect …`: finds objects in many pictures, and saves them drawn and as CSV, COCO, YOLO or crops."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.api.boxes import DetectIn, DetectOut
from fovea.api.coco import CocoDataset
from fovea.async_client import AsyncClient
from fovea.cli.batch_images import Concurrency, ImageBatch, ImageResult, shorten_names
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.input_files import ImageSource
from fovea.cli.option_groups import add_request_options
from fovea.errors import InvalidOption

FORMATS = {"csv": ("csv", "text/csv"), "yolo": ("txt", "text/plain"), "crops": ("crops.zip", "application/zip")}
"""Further file formats of an answer: suffix and content type."""

COCO = "coco"
"""One file of all pictures together, as data sets are distributed, and as `fovea train` reads it."""


def _detect(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to search.")],
    options: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for NAME.json and the drawn NAME.boxes.jpg.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Further files in that folder: csv, coco, yolo, crops.")
    ] = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    *,
    gateway: GatewayOptions,
) -> None:
    """Find objects in pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    Prints the number of objects of each class. The exit code is 1 if any failed.
    """
    formats = _choose_formats(also or (), output)
    reserved = [stem for form, stem in ((COCO, "coco"), ("yolo", "classes")) if form in (also or ())]
    batch = _DetectBatch(gateway.screen, {**options, "model": model}, output, reserved, formats=formats)
    batch.in_coco = {} if COCO in (also or ()) else None
    batch.run(sources, concurrency, gateway)


detect = add_request_options(_detect, DetectIn, without=frozenset({"image", "model", "include"}))
"""The command with the options of every detector; those of one model only are read from its schema."""


@dataclass
class _DetectBatch(ImageBatch):
    task, progress_label = "detect", "detecting"

    formats: dict[str, str] = field(default_factory=dict)
    in_coco: dict[str, DetectOut] | None = None
    classes: list[str] = field(default_factory=list)

    async def answer(self, client: AsyncClient, picture: bytes, image: ImageSource) -> ImageResult:
        answer = DetectOut.model_validate(await self.run_task(client, picture))
        if self.in_coco is not None:
            self.in_coco[image.name] = answer
        facts = answer.model_dump(mode="json")
        if self.output is not None:
            files = {end: await self.run_task(client, picture, accept=media) for end, media in self.formats.items()}
            await self.save(image.stem, {**files, "json": json.dumps(facts, indent=1) + "\n"})
            if "txt" in self.formats and not self.classes:  # YOLO's lines have numbers of classes
                held = json.loads(await self.run_task(client, picture, accept="application/vnd.coco+json"))
                self.classes = [category["name"] for category in held["categories"]]
        return ImageResult(facts, summarise(answer))

    async def finish(self) -> None:
        if self.in_coco:
            await self.save("coco", {"json": build_dataset(shorten_names(self.in_coco)).to_json()})
        if self.classes:
            await self.save("classes", {"txt": "".join(f"{name}\n" for name in self.classes)})


def _choose_formats(also: Sequence[str], output: Path | None) -> dict[str, str]:
    """Choose the files to write, suffix → content type; refuse unknown formats, and formats without a folder."""
    if unknown := [name for name in also if name not in {*FORMATS, COCO}]:
        hint = f"Formats: {', '.join((*FORMATS, COCO))}."
        raise InvalidOption(f"There is no format {unknown[0]!r}.", hint=hint, field="also")
    if also and output is None:
        raise InvalidOption("--also needs a folder to write to.", hint="Give one with --output.", field="also")
    return {"boxes.jpg": "image/jpeg", **dict(FORMATS[name] for name in also if name != COCO)}


def build_dataset(answers: Mapping[str, DetectOut]) -> CocoDataset:
    """The data set of pictures, by name, with their detections and scores."""
    dataset = CocoDataset()
    for name, answer in sorted(answers.items()):
        image = dataset.add_image(name, answer.width, answer.height)
        for each in answer.detections:
            dataset.add_object(image, each.label, each.box, score=each.score)
    return dataset


def summarise(answer: DetectOut) -> str:
    """Summarise the number of objects of each class."""
    return ", ".join(f"{count} × {label}" for label, count in answer.counts.items()) or "nothing found"
