"""`fovea heads calibrate NAME`: makes a head plan of a served model and stores it under a name.

Requests to llm-longctx can use it at once: `"longctx": {"method": "duo", "plan": NAME}`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fovea.cli.commands.probe import print_report, read_artefact, run_study, save_report
from fovea.cli.common_options import GatewayOptions
from fovea.cli.option_groups import CommandApp
from fovea.cli.schema_options import parse_options, parse_pair

app = CommandApp(no_args_is_help=True)

EVIDENCE = "retrieval-report.json"


@app.callback()
def heads() -> None:
    """Make plans of which heads keep the whole cache and which keep only its ends."""


@app.command(no_args_is_help=True)
def calibrate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plan in requests.")],
    kind: Annotated[
        Literal["retrieval", "razor", "duo", "act", "statistic", "centres"],
        typer.Option(help="How the heads are chosen."),
    ] = "retrieval",
    lm: Annotated[str | None, typer.Option(help="Language model to study.")] = None,
    share: Annotated[float | None, typer.Option(help="Fraction of key/value heads that keep the whole cache.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", metavar="NAME=VALUE", help="An option of the study.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for reports and artefacts.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Make a head plan and store it under a name.

    [bold]fovea heads calibrate mine[/] finds retrieval heads and makes a plan of them. Other kinds: razor finds
    echo and induction heads, duo trains gates, act searches for heads to calibrate, centres averages queries for
    triattention.
    """
    screen, lm_option = gateway.screen, {"lm": lm} if lm else {}
    request: dict[str, Any] = {"model": "head-plans", "kind": kind, "name": name, **lm_option}
    request |= {} if share is None else {"share": share}
    with gateway.open() as client:
        study = "retrieval-heads" if kind == "retrieval" else "head-plans"
        options = parse_options(map(parse_pair, option or ()), client.model(study).request_schema)
        if kind == "retrieval":
            evidence = run_study(client, screen, {"model": study, **lm_option, **options})
            save_report(evidence, study, output, screen)
            hint = "Try more samples, shorter texts, or --kind razor."
            request["report"] = read_artefact(evidence, EVIDENCE, "retrieval heads to make a plan of", hint, "kind")
        else:
            request |= options
        report = run_study(client, screen, request)
    save_report(report, "head-plans", output, screen)
    print_report(screen, report)
    if report["artefacts"]:  # else there is no plan
        method = {"act": "act", "centres": "triattention"}.get(kind, "duo")
        screen.note(f'"longctx": {{"method": "{method}", "plan": "{name}"}}')
