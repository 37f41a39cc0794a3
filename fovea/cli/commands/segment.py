"""`fovea segment …`: segments many pictures, and saves the mask, overlay and facts of each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea import endpoints
from fovea.api.coco import CocoDataset
from fovea.api.mask import Contour, Form, SegmentIn, SegmentOut
from fovea.async_client import AsyncClient
from fovea.cli.batch_images import Concurrency, ImageBatch, ImageResult, shorten_names
from fovea.cli.common_options import GatewayOptions, Model
from fovea.cli.input_files import ImageSource
from fovea.cli.option_groups import add_request_options
from fovea.cli.source_handlers import handle_sources

_INCLUDE: tuple[Form, ...] = ("mask", "contours", "overlay")


def _segment(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures to segment.")],
    options: dict[str, Any],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("out"),
    coco: Annotated[
        str | None, typer.Option(help="Also write coco.json of all pictures, with this class name for the regions.")
    ] = None,
    model: Model = None,
    concurrency: Concurrency = 4,
    *,
    gateway: GatewayOptions,
) -> None:
    """Segment pictures: FILE, FOLDER, "PATTERN*", URL, or - for standard input.

    For each picture NAME, writes NAME.mask.png, NAME.overlay.jpg and NAME.json. The exit code is 1 if any failed.
    """
    options["model"] = model
    pictures = handle_sources("segment", sources, dict(options), output, gateway.screen, gateway)
    if coco is not None and len(pictures) < len(sources):
        gateway.screen.note("[yellow]--coco is of pictures only: coco.json has nothing of DICOM.[/]")
    if pictures:
        batch = _SegmentBatch(gateway.screen, options, output, () if coco is None else ("coco",), class_name=coco)
        batch.run(pictures, concurrency, gateway)


segment = add_request_options(_segment, SegmentIn, without=frozenset({"image", "model", "include"}))
"""The command with the options of every segmentation model; those of one model only are read from its schema."""


@dataclass
class _SegmentBatch(ImageBatch):
    task, progress_label = "segment", "segmenting"
    own_options = frozenset({"image", "include"})

    class_name: str | None = None
    in_coco: dict[str, SegmentOut] = field(default_factory=dict)

    async def answer(self, client: AsyncClient, picture: bytes, image: ImageSource) -> ImageResult:
        answer = await client.send(endpoints.segment(picture, **self.options, include=_INCLUDE))
        if self.class_name is not None:
            self.in_coco[image.name] = answer.model_copy(update={"mask": None, "overlay": None})
        facts = answer.model_dump(mode="json", exclude={"mask", "overlay", "probability"}, exclude_none=True)
        files = {"json": _format_facts(facts), "mask.png": answer.mask, "overlay.jpg": answer.overlay}
        written = await self.save(image.stem, files)
        return ImageResult({**facts, "written": written}, f"{_summarise(answer)} → {self.output}/{image.stem}.*")

    async def finish(self) -> None:
        if self.class_name is not None and self.in_coco:
            await self.save("coco", {"json": build_dataset(shorten_names(self.in_coco), self.class_name).to_json()})


def build_dataset(answers: Mapping[str, SegmentOut], class_name: str) -> CocoDataset:
    """The data set of pictures, by name, with the outline of each part of their masks; polygons know no holes."""
    dataset = CocoDataset()
    dataset.category_id(class_name)
    for name, answer in sorted(answers.items()):
        image = dataset.add_image(name, answer.width, answer.height)
        for part in answer.components:
            outlines = [
                [float(number) for point in outline.points for number in point]
                for outline in answer.contours or ()
                if not outline.hole and _box_of(outline) == part.box
            ]
            box = (float(part.box[0]), float(part.box[1]), float(part.box[2]), float(part.box[3]))
            dataset.add_object(image, class_name, box, outlines=outlines, area=part.area, score=part.probability)
    return dataset


def _box_of(outline: Contour) -> tuple[int, int, int, int]:
    across, down = zip(*outline.points, strict=True)
    return min(across), min(down), max(across), max(down)


def _format_facts(facts: dict[str, Any]) -> str:
    """Format facts as JSON, one a line: contours have thousands of numbers."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()) + "\n}\n"


def _summarise(answer: SegmentOut) -> str:
    if answer.empty:
        return f"nothing found (highest probability {answer.max_probability:.2f})"
    regions = "1 region" if answer.component_count == 1 else f"{answer.component_count} regions"
    return f"{answer.area_percent:.1f} % in {regions}, probability {answer.mean_probability:.2f}"
