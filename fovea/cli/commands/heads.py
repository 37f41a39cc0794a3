"""`fovea heads calibrate NAME`: make a head plan of a served model and store it under a name.

Requests to llm-longctx use it at once: `"longctx": {"method": "duo", "plan": NAME}`. Knows reports as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fovea.cli.commands.probe import parse_pair, print_report, run_study, save_report
from fovea.cli.common_options import AsJson, Connection, Key, Url
from fovea.cli.output import Screen
from fovea.cli.schema_options import parse_options
from fovea.transport import LOCAL
from shared.errors import InvalidOption

__all__ = ["app", "calibrate"]

app = typer.Typer(no_args_is_help=True, help="Head plans: which heads keep everything, which only ends.")

EVIDENCE = "retrieval-report.json"


@app.callback()
def heads() -> None:
    """Head plans: which heads keep everything, which only ends."""


@app.command(no_args_is_help=True)
def calibrate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What requests will call the plan.")],
    kind: Annotated[
        Literal["retrieval", "razor", "duo", "act", "statistic"], typer.Option(help="By what heads are told apart.")
    ] = "retrieval",
    lm: Annotated[str | None, typer.Option(help="Language model.", show_default=False)] = None,
    share: Annotated[
        float | None, typer.Option(help="Share of key/value heads that stay full.", show_default=False)
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the study.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for reports and artefacts.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Make a head plan and store it under a name.

    [bold]fovea heads calibrate mine[/] finds retrieval heads and makes a plan of them; --kind razor, duo or act makes
    it by echo and induction, by trained gates, or searches heads to calibrate.
    """
    screen = Screen(as_json=as_json)
    chosen = {"lm": lm} if lm else {}
    wanted: dict[str, Any] = {"model": "head-plans", "kind": kind, "name": name, **chosen}
    wanted |= {} if share is None else {"share": share}
    with Connection(url, key).client() as client:
        study = "retrieval-heads" if kind == "retrieval" else "head-plans"
        options = parse_options(dict(parse_pair(text) for text in option or ()), client.model(study).request_schema)
        if kind == "retrieval":
            found = run_study(client, screen, {"model": study, **chosen, **options})
            save_report(found, study, output, screen)
            wanted["report"] = _evidence(found)
        else:
            wanted |= options
        report = run_study(client, screen, wanted)
    save_report(report, "head-plans", output, screen)
    print_report(screen, report)
    screen.note(f'"longctx": {{"method": "{"act" if kind == "act" else "duo"}", "plan": "{name}"}}')


def _evidence(report: dict[str, Any]) -> Any:
    found = next((one for one in report["artefacts"] if one["name"] == EVIDENCE), None)
    if found is None:
        detail = "The study found no retrieval heads to make a plan of."
        raise InvalidOption(detail, hint="More samples or shorter texts may help; or take --kind razor.", field="kind")
    return json.loads(found["content"])
