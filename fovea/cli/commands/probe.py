"""`fovea probe EXPERIMENT`: studies a language model as a job, and can serve with the heads that were found.

`--then METHOD` uses the report's head plan with that attention method in llm-longctx; the needle grid shows what the
model recalls with it, against full attention.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.common_options import GatewayOptions
from fovea.cli.job_progress import follow_job
from fovea.cli.option_groups import expand_options
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options, parse_pair
from fovea.client import Client
from shared.errors import InvalidOption

PLAN_FILE = "head-plan.json"
MAX_ROWS = 12
"""Printed rows of a report's first table."""

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


@expand_options
def probe(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="retrieval-heads, circuits, needle-grid …")],
    lm: Annotated[str | None, typer.Option(help="Language model to study.", show_default=False)] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the experiment.")
    ] = None,
    *,
    follow_up: FollowUp,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for reports and artefacts.", show_default=False)
    ] = None,
    gateway: GatewayOptions,
) -> None:
    """Study a language model; with --then, use the heads that were found.

    [bold]fovea probe retrieval-heads --then duo[/] finds retrieval heads, compresses the cache with them, and shows
    what the model still recalls.
    """
    screen = gateway.screen
    with gateway.open() as client:
        schema = client.model(experiment).request_schema
        texts = dict(parse_pair(text) for text in option or ())
        lm_option = {"lm": lm} if lm else {}
        request = {"model": experiment, **lm_option, **parse_options(texts, schema)}
        report = run_study(client, screen, request)
        save_report(report, experiment, output, screen)
        print_report(screen, report)
        if follow_up.then is None:
            return
        grid = {
            "model": "needle-grid",
            "lengths": _parse_numbers(follow_up.lengths),
            "depths": _parse_numbers(follow_up.depths),
            **lm_option,
        }
        for method in ({"method": "dense"}, {"method": follow_up.then, "plan": _read_plan(report)}):
            grid_report = run_study(client, screen, {**grid, "longctx": method})
            save_report(grid_report, f"needle-{method['method']}", output, screen)
            _print_grid(screen, str(method["method"]), grid_report)


def run_study(client: Client, screen: Screen, request: dict[str, Any]) -> dict[str, Any]:
    """Run an experiment as a job, with a progress bar; returns its report."""
    job = client.jobs.submit("probe", request)
    follow_job(client, screen, job, title=str(request["model"]))
    report: dict[str, Any] = client.jobs.result(job.id).json()
    return report


def print_report(screen: Screen, report: dict[str, Any]) -> None:
    """Print a report: warnings, numbers and the beginning of its first table."""
    if screen.as_json:
        screen.line(report)
        return
    screen.out.print(f"[bold]{escape(report['title'])}[/]")
    for warning in report["warnings"]:
        screen.note(f"[yellow]{escape(warning)}[/]")
    screen.facts({name.replace("_", " "): _format_scalar(one) for name, one in report["scalars"].items()})
    for table in report["tables"][:1]:
        rows = ([escape(_format_figure(cell)) for cell in row] for row in table["rows"][:MAX_ROWS])
        screen.table(table["columns"], rows)


def _print_grid(screen: Screen, method: str, report: dict[str, Any]) -> None:
    if screen.as_json:
        screen.line(report)
        return
    grid = report["grids"][0]
    recall = report["scalars"]["recall"]["value"]
    screen.out.print(f"[bold]needle grid with {escape(method)}[/]: mean recall {_format_figure(recall)}")
    rows = (
        [f"{tick} %", *(f"{_choose_shade(value)} {_format_figure(value)}" for value in values)]
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
    screen.note(f"wrote {folder / name}.json and {len(report['artefacts'])} artefacts")


def _read_plan(report: dict[str, Any]) -> Any:
    found = next((one for one in report["artefacts"] if one["name"] == PLAN_FILE), None)
    if found is None:
        detail = f"{report['title']} made no head plan."
        raise InvalidOption(detail, hint="retrieval-heads and head-plans make one.", field="then")
    return json.loads(found["content"])


def _parse_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(
            f"{text!r} is not a list of whole numbers.", hint="Write for example 350,700,1200."
        ) from error


def _format_scalar(one: dict[str, Any]) -> str:
    note = f" ({one['note']})" if one["note"] else ""
    return f"{_format_figure(one['value'])} {one['unit']}{note}".strip()


def _format_figure(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _choose_shade(value: float | None) -> str:
    return _SHADES[0 if value is None else min(int(value * len(_SHADES)), len(_SHADES) - 1)]
