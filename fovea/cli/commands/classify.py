"""`fovea classify …`: classifies many pictures, whole or patch by patch, and saves the tinted picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.api.classes import ClassifyIn, ClassifyOut
from fovea.async_client import AsyncClient
from fovea.cli.batch_images import Concurrency, ImageBatch, ImageResult
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.input_files import ImageSource
from fovea.cli.option_groups import add_request_options


def _classify(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to classify.")],
    options: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for NAME.json and the tinted NAME.classes.jpg.")
    ] = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    *,
    gateway: GatewayOptions,
) -> None:
    """Classify pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    Prints the class of each, or with --tile the number of patches of each class. The exit code is 1 if any failed.
    """
    _ClassifyBatch(gateway.screen, {**options, "model": model}, output=output).run(sources, concurrency, gateway)


classify = add_request_options(_classify, ClassifyIn, without=frozenset({"image", "model"}))
"""The command with the options of every classifier; those of one model only are read from its schema."""


@dataclass
class _ClassifyBatch(ImageBatch):
    task, progress_label = "classify", "classifying"

    async def answer(self, client: AsyncClient, picture: bytes, image: ImageSource) -> ImageResult:
        answer = ClassifyOut.model_validate(await self.run_task(client, picture))
        facts = answer.model_dump(mode="json")
        if self.output is not None:
            tinted = await self.run_task(client, picture, accept="image/jpeg")
            await self.save(image.stem, {"json": json.dumps(facts, indent=1) + "\n", "classes.jpg": tinted})
        return ImageResult(facts, summarise(answer))


def summarise(answer: ClassifyOut) -> str:
    """Summarise the classes of a picture with their probabilities, or the number of patches of each class."""
    if len(answer.results) == 1:
        return ", ".join(f"{each.label} {each.probability:.1%}" for each in answer.results[0].top)
    return ", ".join(f"{count} × {label}" for label, count in answer.counts.items())
