"""`fovea probe EXPERIMENT`: studies a language model as a job, and can serve with the heads that were found."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import endpoints
from fovea.cli.commands.methods import fetch_method
from fovea.cli.common_options import GatewayOptions
from fovea.cli.job_progress import run_as_job
from fovea.cli.output import Screen, format_figure
from fovea.cli.schema_options import parse_options, parse_pair
from fovea.client import Client
from fovea.errors import FoveaError, InvalidOption, NotFound

PLAN_FILE = "head-plan.json"
MAX_ROWS = 60
"""Printed rows of a table of a report; a note says how many more there are."""

FORMS = {"html": "text/html", "svg": "image/svg+xml"}
"""Suffix → media type of the forms of a report that are written next to its JSON."""

_SHADES = " ░▒▓█"


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A needle grid with the heads that a study found."""

    then: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Serve with this method and the plan that was found, for example duo."),
    ] = None
    lengths: Annotated[str, typer.Option(help="Context lengths of the needle grid after --then.")] = "350,700,1200"
    depths: Annotated[str, typer.Option(help="Depths of the needle grid, in percent.")] = "0,50,100"


def probe(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="Without it, the experiments are listed.")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Language model to study.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the experiment.")
    ] = None,
    *,
    follow_up: FollowUp,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for reports, pages, figures and artefacts.")
    ] = None,
    gateway: GatewayOptions,
) -> None:
    """Study a language model, or list the experiments; with --then, use the heads that were found.

    [bold]fovea probe retrieval-heads --then duo[/] finds retrieval heads, compresses the cache with them, and shows
    what the model still recalls.
    """
    screen = gateway.screen
    with gateway.open() as client:
        experiments = client.models("probe")
        if experiment is None:
            if not screen.wrote(*experiments):
                told = [
                    (f"[bold]{escape(e.id)}[/]", escape((e.model_extra or {}).get("summary", ""))) for e in experiments
                ]
                screen.table(("experiment", "what it does"), told, head=False)
            return
        _check_name(experiment, [one.id for one in experiments])
        schema = client.model(experiment).request_schema
        lm_option = {"lm": lm} if lm else {}
        request = {"model": experiment, **lm_option, **parse_options(map(parse_pair, option or ()), schema)}
        lengths, depths = _parse_numbers(follow_up.lengths), _parse_numbers(follow_up.depths)
        if follow_up.then is not None:  # before the long part
            fetch_method(client, follow_up.then)
        report = run_study(client, screen, request)
        save_report(report, experiment, output, screen)
        save_figures(client, request, report, output, screen)
        print_report(screen, report)
        if follow_up.then is None:
            return
        grid = {"model": "needle-grid", "lengths": lengths, "depths": depths, **lm_option}
        hint = "retrieval-heads and head-plans make one."
        plan = read_artefact(report, PLAN_FILE, "head plan", hint, "then")
        for method in ({"method": "dense"}, {"method": follow_up.then, "plan": plan}):
            grid_report = run_study(client, screen, {**grid, "longctx": method})
            save_report(grid_report, f"needle-{method['method']}", output, screen)
            save_figures(client, {**grid, "longctx": method}, grid_report, output, screen, f"needle-{method['method']}")
            _print_grid(screen, str(method["method"]), grid_report)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Experiments: {', '.join(known) or 'none'}."
        raise NotFound(f"There is no experiment {name!r}.", hint=hint, field="experiment")


def run_study(client: Client, screen: Screen, request: dict[str, Any]) -> dict[str, Any]:
    """Run an experiment as a job, with a progress bar; returns its report."""
    report: dict[str, Any] = run_as_job(client, screen, endpoints.task("probe", request, {}), str(request["model"]))
    return report


def print_report(screen: Screen, report: dict[str, Any]) -> None:
    """Print a report: warnings, numbers and tables; a note says what is not shown."""
    if screen.wrote(report):
        return
    screen.title(f"[bold]{escape(report['title'])}[/]")
    for warning in report["warnings"]:
        screen.note(f"[yellow]{escape(warning)}[/]")
    digits = 16 if screen.is_tsv else 3
    most = None if screen.is_tsv else MAX_ROWS
    sections = [
        (
            table["name"].replace("_", " "),
            table["columns"],
            [[escape(format_figure(cell, digits)) for cell in row] for row in table["rows"][:most]],
        )
        for table in report["tables"]
    ]
    scalars = {name.replace("_", " "): _format_scalar(one, digits) for name, one in report["scalars"].items()}
    screen.sections(scalars, sections)
    for table, (name, _, shown) in zip(report["tables"], sections, strict=True):
        if len(shown) < (count := len(table["rows"])):
            named = f" of {name}" if len(sections) > 1 else ""
            screen.note(f"{len(shown)} of {count} rows{named} are shown. --format tsv or -o FOLDER gives all.")
    if grids := [escape(str(grid["name"]).replace("_", " ")) for grid in report["grids"] if "name" in grid]:
        screen.note(f"[dim]Figures: {', '.join(grids)}. -o FOLDER writes them as a page and as SVG.[/]")


def _print_grid(screen: Screen, method: str, report: dict[str, Any]) -> None:
    if screen.wrote(report):
        return
    grid, recall = report["grids"][0], format_figure(report["scalars"]["recall"]["value"])
    screen.title(f"[bold]needle grid with {escape(method)}[/]: mean recall {recall}")
    rows = (
        [f"{tick} %", *(f"{_SHADES[min(int(5 * (value or 0)), 4)]} {format_figure(value)}" for value in values)]
        for tick, values in zip(grid["rows"]["ticks"], grid["values"], strict=True)
    )
    screen.table(("depth", *(f"{tick} tokens" for tick in grid["columns"]["ticks"])), rows)


def save_report(report: dict[str, Any], name: str, folder: Path | None, screen: Screen) -> None:
    """Write a report and its artefacts to a folder, where one is given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(screen.format_json(report) + "\n", "utf8")
    for artefact in report["artefacts"]:
        text = artefact["content"] or ""
        data = base64.b64decode(text) if artefact.get("encoding") == "base64" else text.encode()
        (folder / Path(artefact["name"]).name).write_bytes(data)
    screen.note(f"wrote {folder / name}.json and {len(report['artefacts'])} artefacts", markup=False)


def save_figures(
    client: Client,
    request: Mapping[str, Any],
    report: Mapping[str, Any],
    folder: Path | None,
    screen: Screen,
    name: str | None = None,
) -> None:
    """Write a report as a page (HTML) and a figure (SVG), where a folder is given; if not stored, it runs again."""
    if folder is None:
        return
    key, written = report.get("manifest", {}).get("report"), []
    for suffix, media in FORMS.items():
        try:
            content = client.send(endpoints.report(key, suffix)) if key else client.run("probe", request, accept=media)
        except FoveaError as error:  # the report itself is written
            screen.note(f"[yellow]No {suffix}: {escape(error.detail)}[/]")
            continue
        file = folder / f"{name or request['model']}.{suffix}"
        file.write_bytes(content)
        written.append(str(file))
    if written:
        screen.note(f"wrote {' and '.join(written)}", markup=False)


def read_artefact(report: dict[str, Any], name: str, what: str, hint: str, field: str) -> Any:
    """Read the JSON of a report's artefact. Raises InvalidOption, with the hint and the field: there is none."""
    found = next((one for one in report["artefacts"] if one["name"] == name), None)
    if found is None:
        raise InvalidOption(f"{report['title']} found no {what}.", hint=hint, field=field)
    return json.loads(found["content"])


def _parse_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"{text!r} is not a list of integers.", hint="Write for example 350,700,1200.") from error


def _format_scalar(one: dict[str, Any], digits: int) -> str:
    note = one["note"] and f"({one['note']})"
    return " ".join(filter(None, (format_figure(one["value"], digits), one["unit"], note)))
