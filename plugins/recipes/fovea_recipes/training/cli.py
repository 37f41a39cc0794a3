"""The verbs `fovea train`, `fovea recalibrate` and `fovea import`: plug-ins of the command line (`fovea.commands`).

Knows the terminal: options in, progress and plain sentences out; errors are left to the command line. Torch
loads only when a verb runs, so that `fovea --help` stays quick.
"""

from __future__ import annotations

import importlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from fovea.errors import FoveaError, InvalidOption, NotFound
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_manifest
from shared.settings import settings
from shared.storage import ObjectStore, open_object_store
from shared.storage.private_files import make_files_private

if TYPE_CHECKING:
    from fovea_recipes.training.progress_report import ProgressReport
    from fovea_recipes.training.recipe import Recipe
    from fovea_recipes.training.trainer import FitResult


def import_checkpoint(
    model: Annotated[str, typer.Argument(help="The model of the checkpoint, for example `pranet`.")],
    file: Annotated[
        Path, typer.Argument(help="`.safetensors`, `.pth`, `.pt`, `.ckpt`, or `.onnx` with nothing folded.")
    ],
    positions: Annotated[
        Path | None, typer.Option(help="`.npy` with the position table of a gaze model, which no checkpoint holds.")
    ] = None,
) -> None:
    """Serve an official checkpoint instead of the demo weights. No code in the file is ever run."""
    console = Console(soft_wrap=True, markup=False)
    config = settings()
    make_files_private(config.data_dir)
    importing = importlib.import_module("fovea_recipes.training.checkpoint_import")
    facts = importing.import_weights(model, file, config.weights_dir, positions)
    publish_weights(open_object_store(config), config.weights_dir, model)
    for kind, label in (("missing", "missing, kept at their initial values"), ("unexpected", "left out")):
        if keys := facts.notes[kind]:
            console.print(f"{len(keys)} tensors {label}: {', '.join(keys)}", highlight=False)
    if "fitted" in facts.notes:
        console.print(
            "Its position table was fitted anew. Give the one that it was trained with: --positions FILE.npy."
        )
    console.print(f"Imported {facts.tensors} tensors, {facts.parameters:,} parameters, sha256 {facts.sha256[:12]}….")
    console.print(f"{model} is served with them after the next start.")


def publish_weights(objects: ObjectStore, folder: Path, name: str) -> None:
    """Store what a folder holds of one set of weights, its manifest last."""
    weights = objects.under("weights")
    if weights.folder is not None:
        return
    for suffix in (".safetensors", ".onnx", ".json"):
        if (file := folder / f"{name}{suffix}").exists():
            weights.upload(file.name, file)


@dataclass(frozen=True, slots=True)
class OwnData:
    """Data of the user's own, and how they are split."""

    data: Annotated[
        Path | None, typer.Option(help="Folder of your own pictures with labels; the result is served by name.")
    ] = None
    group_by: Annotated[str, typer.Option(help="Pattern in file names of what is never split: a road, a patient.")] = ""

    def build(self) -> list[str]:
        """Return them as knobs of a recipe; none without data."""
        grouping = [f"group_by={self.group_by}"] if self.group_by else []
        return [] if self.data is None else [f"data={self.data.resolve()}", *grouping]


def train(
    recipe: Annotated[str | None, typer.Argument(help="Name of the recipe; left out, they are listed.")] = None,
    *,
    own: OwnData,
    name: Annotated[str | None, typer.Option(help="Name of the model; by default recipe and folder.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Checkpoints and derived data; goes on from what is there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where weights, manifest and ONNX graph go.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0 … or auto.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A knob, `name=value` or `schedule.steps=100`.")
    ] = None,
) -> None:
    """Train weights by a recipe, measure them on held-out data, write them with their manifest and ONNX graph."""
    console = Console(soft_wrap=True, markup=False)
    if recipe is not None:
        console.print(f"Preparing the recipe {recipe} …", highlight=False)  # torch is imported now, for seconds
    found = importlib.import_module("fovea_recipes.training.recipe")
    if recipe is None:
        for known, kind in found.recipes().items():
            console.print(f"{known:18} {(kind.__doc__ or '').splitlines()[0]}")
        return
    kind = found.recipe_named(recipe)
    make_files_private(settings().data_dir)
    chosen = configure_recipe(kind, [*own.build(), *(set_ or [])])
    data_dir = settings().data_dir / "training"
    if own.data is not None:
        if not own.data.is_dir():
            raise NotFound(f"There is no folder {str(own.data)!r}.", hint="Give the folder of the unpacked data.")
        name = model_name(name) if name else f"{recipe}-{model_name(own.data.resolve().name)}"
        _check_name(name, kind, out or settings().weights_dir)
    folder = folder or data_dir / (recipe if own.data is None else str(name))
    out = out or (folder / "result" if own.data is None else settings().weights_dir)
    with importlib.import_module("fovea_recipes.training.progress_report").ProgressReport(console) as report:
        report.begin("Reading the data")
        _look(chosen, folder, console)
        _publish(chosen, _fit(chosen, folder, device, report), out, name, report, console)


def recalibrate(
    file: Annotated[Path, typer.Argument(help="The weights, next to their manifest.")],
    data: Annotated[Path, typer.Option(help="The folder that they were trained on.")],
    others: Annotated[list[Path] | None, typer.Option(help="Pictures of another kind, measured on.")] = None,
    foreign: Annotated[list[Path] | None, typer.Option(help="Pictures of another kind; half are fitted.")] = None,
) -> None:
    """Fit again which pictures trained weights know; the network stays as it is."""
    recalibrating = importlib.import_module("fovea_recipes.training.recalibrate")
    manifest = recalibrating.recalibrate(file, data, tuple(others or ()), tuple(foreign or ()))
    if file.parent.resolve() == settings().weights_dir.resolve():
        publish_weights(open_object_store(settings()), file.parent, manifest.name)
    for key, value in manifest.metrics.items():
        if key.startswith(("auroc_", "warned_", "false_")):
            typer.echo(f"{key} {value:.3f}")


def model_name(text: str) -> str:
    """A name as models have them: lower case, digits, dots and dashes; InvalidOption if nothing of it can be kept."""
    if not (name := re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")):
        detail = f"{text!r} has no letter a to z and no digit, which names of models are made of."
        raise InvalidOption(detail, hint="Name the model with --name.", field="name")
    return name


def _check_name(name: str, kind: type[Recipe], out: Path) -> None:
    """See that no model of another network has that name: its service would find these weights in place of its own."""
    held = None
    with suppress(FoveaError):  # there is none, or nothing that is served
        held = read_manifest(out / f"{name}.safetensors")
    if held is not None and held.network.name != (kind.builds or kind.weights):
        detail = f"{name} in {out} has the network {held.network.name}, and {kind.name} trains another network."
        raise InvalidOption(detail, hint="Choose another --name.", field="name")
    recipes, shipped = importlib.import_module("fovea_recipes.training.recipe").recipes(), shipped_weights()
    if name in {*shipped, *(each.weights for each in recipes.values())} - {kind.weights, kind.serves}:
        detail = f"{name} is a model of Fovea's own, and {kind.name} trains another network."
        raise InvalidOption(detail, hint="Choose another --name.", field="name")


def configure_recipe(kind: type[Recipe], assignments: list[str]) -> Recipe:
    """The recipe with knobs set from `name=value`; dots reach into groups of knobs.

    Raises:
        InvalidOption: No such knob, or no such value.
    """
    knobs: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidOption(f"{assignment!r} is not `name=value`.", field="set")
        group, _, knob = name.rpartition(".")
        value = _parsed(text)
        if group:
            knobs.setdefault(group, _defaults(kind, group))[knob] = value
        else:
            knobs[knob] = value
    try:
        return kind.model_validate(knobs)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidOption(f"{where}: {first['msg']}.", hint=f"Knobs: {', '.join(kind.model_fields)}.") from error


def _parsed(text: str) -> Any:
    """Lists and groups are written as JSON; all else is read by the knob itself."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _defaults(kind: type[Recipe], group: str) -> dict[str, Any]:
    field = kind.model_fields.get(group)
    if field is None or not hasattr(field.default, "model_dump"):
        raise InvalidOption(f"{kind.name} has no group of knobs {group!r}.", field="set")
    values: dict[str, Any] = field.default.model_dump()
    return values


def _fit(recipe: Recipe, folder: Path, device: str, report: ProgressReport) -> FitResult:
    fit = importlib.import_module("fovea_recipes.training.trainer").fit
    if device == "auto":
        device = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    fitted: FitResult = fit(recipe, folder, device=device, on_step=report.step)
    return fitted


def _look(recipe: Recipe, folder: Path, console: Console) -> None:
    """Say what is in the folder, before anything is trained on it."""
    recipe.prepare(folder / "data")
    if (survey := getattr(recipe, "survey", lambda: None)()) is not None:
        for line in survey.lines():
            console.print(line, highlight=False)


def _publish(
    recipe: Recipe, fitted: FitResult, out: Path, name: str | None, report: ProgressReport, console: Console
) -> None:
    report.begin("Measuring on held-out data")
    manifest = importlib.import_module("fovea_recipes.training.publish").publish(recipe, fitted, out, name=name)
    for metric, value in manifest.metrics.items():
        low_high = manifest.intervals.get(metric)
        console.print(f"  {metric:24} {value:.4f}{f'  ({low_high[0]:.3f} to {low_high[1]:.3f})' if low_high else ''}")
    report.begin("Exporting the ONNX graph")
    if (parity := recipe.export(fitted.network, out / f"{manifest.name}.onnx")) is not None:
        console.print(f"ONNX graph within {parity.max_difference:.1e} of torch (values up to {parity.max_value:.1f}).")
    minutes, speed = manifest.notes["training_seconds"] / 60, manifest.notes["pictures_per_second"]
    console.print(
        f"Trained for {minutes:.1f} minutes, {speed} pictures per second. Wrote {manifest.bytes:,} bytes to {out}."
    )
    if out == settings().weights_dir:
        publish_weights(open_object_store(settings()), out, manifest.name)
        console.print(f"{manifest.name} is served: a running Fovea loads it within seconds.")
    else:
        console.print(f"In {settings().weights_dir} they would be served.")
