"""`fovea probe EXPERIMENT`: study a language model as a job, and put what was found to use.

`--then METHOD` closes the loop: the report's head plan goes to llm-longctx as that attention method's, and the needle
grid shows what the model recalls with it, beside full attention. Knows reports as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fovea.cli.common_options import AsJson, Connection, Key, Url
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options
from fovea.client import Client
from fovea.transport import LOCAL
from shared.errors import InvalidOption

__all__ = ["parse_pair", "print_report", "probe", "run_study", "save_report"]

PLAN = "head-plan.json"
SHOWN = 12
"""Rows of a report's first table."""

_SHADES = " ░▒▓█"


def probe(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="retrieval-heads, circuits, needle-grid …")],
    lm: Annotated[str | None, typer.Option(help="Language model to study.", show_default=False)] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the experiment.")
    ] = None,
    then: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Serve with this method and the plan that was found, for example duo."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Context lengths of the needle grid after --then.")] = "350,700,1200",
    depths: Annotated[str, typer.Option(help="Depths of it, in percent.")] = "0,50,100",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for reports and artefacts.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Study a language model; with --then, use the heads that were found.

    [bold]fovea probe retrieval-heads --then duo[/] finds retrieval heads, compresses the cache with them, and shows
    what was kept.
    """
    screen = Screen(as_json=as_json)
    with Connection(url, key).client() as client:
        schema = client.model(experiment).request_schema
        texts = dict(parse_pair(text) for text in option or ())
        chosen = {"lm": lm} if lm else {}
        request = {"model": experiment, **chosen, **parse_options(texts, schema)}
        report = run_study(client, screen, request)
        save_report(report, experiment, output, screen)
        print_report(screen, report)
        if then is None:
            return
        grid = {"model": "needle-grid", "lengths": _numbers(lengths), "depths": _numbers(depths), **chosen}
        for method in ({"method": "dense"}, {"method": then, "plan": _plan(report)}):
            kept = run_study(client, screen, {**grid, "longctx": method})
            save_report(kept, f"needle-{method['method']}", output, screen)
            _grid(screen, str(method["method"]), kept)


def run_study(client: Client, screen: Screen, request: dict[str, Any]) -> dict[str, Any]:
    """A report, made as a job while its progress shows."""
    job = client.jobs.submit("probe", request)
    share = TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeElapsedColumn())
    with Progress(*columns, console=screen.err, transient=True, disable=screen.as_json) as progress:
        row = progress.add_task(str(request["model"]), total=1.0)
        for seen in client.jobs.events(job.id):
            progress.update(row, completed=seen.progress, description=escape(seen.note or seen.status))
    found: dict[str, Any] = client.jobs.result(job.id).json()
    return found


def print_report(screen: Screen, report: dict[str, Any]) -> None:
    """Tell a report: warnings, numbers and the beginning of its first table."""
    if screen.as_json:
        screen.line(report)
        return
    screen.out.print(f"[bold]{escape(report['title'])}[/]")
    for warning in report["warnings"]:
        screen.note(f"[yellow]{escape(warning)}[/]")
    screen.facts({name.replace("_", " "): _scalar(one) for name, one in report["scalars"].items()})
    for table in report["tables"][:1]:
        rows = ([escape(_figure(cell)) for cell in row] for row in table["rows"][:SHOWN])
        screen.table(table["columns"], rows)


def _grid(screen: Screen, method: str, report: dict[str, Any]) -> None:
    if screen.as_json:
        screen.line(report)
        return
    grid = report["grids"][0]
    recall = report["scalars"]["recall"]["value"]
    screen.out.print(f"[bold]needle grid with {escape(method)}[/]: mean recall {_figure(recall)}")
    rows = (
        [f"{tick} %", *(f"{_shade(value)} {_figure(value)}" for value in values)]
        for tick, values in zip(grid["rows"]["ticks"], grid["values"], strict=True)
    )
    screen.table(("depth", *(f"{tick} tokens" for tick in grid["columns"]["ticks"])), rows)


def save_report(report: dict[str, Any], name: str, folder: Path | None, screen: Screen) -> None:
    """Write a report and its artefacts into a folder, where one is given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(screen.pretty(report) + "\n", "utf8")
    for artefact in report["artefacts"]:
        (folder / Path(artefact["name"]).name).write_text(artefact["content"] or "", "utf8")
    screen.note(f"wrote {folder / name}.json and {len(report['artefacts'])} artefacts")


def _plan(report: dict[str, Any]) -> Any:
    found = next((one for one in report["artefacts"] if one["name"] == PLAN), None)
    if found is None:
        detail = f"{report['title']} made no head plan."
        raise InvalidOption(detail, hint="retrieval-heads and head-plans make them.", field="then")
    return json.loads(found["content"])


def parse_pair(text: str) -> tuple[str, str]:
    """Name and value of an option.

    Raises:
        InvalidOption: There is no equals sign in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidOption(f"--option {text!r} has no value.", hint="Write --option name=value.")
    return name.replace("-", "_"), value


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"{text!r} is no list of whole numbers.", hint="Write 350,700,1200.") from error


def _scalar(one: dict[str, Any]) -> str:
    note = f" ({one['note']})" if one["note"] else ""
    return f"{_figure(one['value'])} {one['unit']}{note}".strip()


def _figure(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _shade(value: float | None) -> str:
    return _SHADES[0 if value is None else min(int(value * len(_SHADES)), len(_SHADES) - 1)]
