"""Commands of `fovea judge` that compute from labels: agreement, rankings, ensembles, the leaderboard.

Wherever there are runs, kappa and tau are shown side by side, because one says nothing about the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import judge_endpoints
from fovea.cli.commands.judge.options import Measure, compute, format_figure, format_interval, name_judge, read_runs
from fovea.cli.common_options import GatewayOptions
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text, write_text

Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="Reference qrels; may be .gz.")]
Labels = Annotated[Path, typer.Argument(metavar="JUDGE", help="Qrels of the judge, or JSON lines of a batch.")]
Runs = Annotated[list[Path] | None, typer.Option("--run", help="TREC run; may be repeated.")]


def agreement(
    reference: Reference,
    judge: Labels,
    topics: Annotated[
        Path | None, typer.Option(help="With --passages: bias by length and overlap of the texts.")
    ] = None,
    passages: Annotated[Path | None, typer.Option(help="JSON lines with id and text.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Compare a judge's labels with reference labels: kappa with its interval, alpha, confusion, bias."""
    screen = gateway.screen
    found = compute("agreement", gateway, reference=reference, judge=judge, topics=topics, passages=passages)
    if screen.wrote(found):
        return
    more = ", ".join(f"{found[name]} {name}" for name in ("missing", "extra", "clamped") if found[name])
    screen.facts(
        {
            "pairs": f"{found['pairs']} ({more})" if more else str(found["pairs"]),
            "kappa": f"{format_figure(found['kappa'])}   ({format_interval(found['kappa_interval'])})",
            "alpha (ordinal)": format_figure(found["alpha"]),
            "kappa, linear": format_figure(found["kappa_linear"]),
            "kappa, quadratic": format_figure(found["kappa_quadratic"]),
            "bias": format_figure(found["bias"]),
            "mean error": format_figure(found["mae"]),
            "invalid": found["invalid"] or None,
            "not calibrated": f"{found['uncalibrated']} pairs without a grade" if found["uncalibrated"] else None,
        }
    )
    screen.out.print()
    cuts = found["kappa_by_cut"]
    rows = [(cut, format_figure(cuts[cut]), format_figure(found["alpha_by_cut"][cut])) for cut in cuts]
    screen.table(("cut", "kappa", "alpha"), rows)
    screen.out.print()
    grid = found["confusion"]
    screen.table(
        ("reference ↓ judge →", *map(str, range(len(grid)))),
        ((str(grade), *map(str, row)) for grade, row in enumerate(grid)),
    )
    for name, block in ((name, (found["bias_by_text"] or {}).get(name)) for name in ("by_length", "by_overlap")):
        if block:
            _print_terciles(screen, name, block)


def rankings(
    reference: Reference,
    judge: Labels,
    runs: Runs = None,
    measure: Measure = "ndcg_cut_10",
    families: Annotated[
        list[str] | None, typer.Option("--family", help="SYSTEM=FAMILY, to measure self-preference.")
    ] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Rank systems under both label sets: tau, rho, kappa, and how far each system moved."""
    screen, named = gateway.screen, dict(pair.partition("=")[::2] for pair in families or ())
    files = {"reference": reference, "judge": judge, "runs": read_runs(runs)}
    found = compute("rankings", gateway, measure=measure, families=named, **files)
    if screen.wrote(found):
        return
    figures = {"tau-b": "tau_b", "rho": "rho", "tau-AP": "tau_ap", "kappa": "kappa", "alpha": "alpha"}
    figures |= {"self-preference": "self_preference"} if families else {}
    screen.facts({label: format_figure(found[name]) for label, name in figures.items()})
    screen.out.print()
    rows = (
        (escape(row["system"]), format_figure(row["reference"]), format_figure(row["judge"]), f"{row['shift']:+d}")
        for row in found["systems"]
    )
    screen.table(("system", "reference", "judge", "shift"), rows)


def ensemble(
    judges: Annotated[list[Path], typer.Argument(metavar="JUDGE…", help="Label files of the judges.")],
    combine: Annotated[str, typer.Option(help="majority, average or median.")] = "majority",
    tie: Annotated[str, typer.Option(help="average, min, max, median or random.")] = "average",
    rounding: Annotated[str, typer.Option(help="half_up or half_even.")] = "half_up",
    weights: Annotated[list[float] | None, typer.Option("--weight", help="One weight per judge.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write to; default: standard output.")
    ] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Combine several label sets into one; writes qrels to -o or to standard output."""
    screen, options = gateway.screen, {"combine": combine, "tie": tie, "rounding": rounding, "weights": weights}
    found = compute("ensembles", gateway, judges=list(map(read_text, judges)), **options)
    if screen.wrote(found):
        return
    write_text(output, found["qrels"].encode("utf8"))
    if output is not None:
        screen.note(f"wrote {output} ({found['pairs']} pairs, {' · '.join(map(str, found['counts']))} per grade)")


def leaderboard(
    labels: Annotated[
        list[Path] | None, typer.Argument(metavar="REFERENCE JUDGE…", help="Without files: the stored table.")
    ] = None,
    runs: Runs = None,
    measure: Measure = "ndcg_cut_10",
    sort: Annotated[str, typer.Option(help="kappa, alpha, tau_b, rho, mae, invalid_share, cost, judge …")] = "kappa",
    name: Annotated[str | None, typer.Option(help="Store the table under this name, or show the stored one.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Compare judges, best first: kappa with its interval, next to tau.

    With files: the first is the reference, the others are the judges.
    """
    screen = gateway.screen
    if labels:
        reference, *judges = labels
        labelled = [{"judge": name_judge(path), "labels": read_text(path)} for path in judges]
        files = {"reference": reference, "runs": read_runs(runs), "judges": labelled}
        found = compute("leaderboard", gateway, measure=measure, sort=sort, name=name, **files)
    else:
        found = gateway.send(judge_endpoints.fetch("leaderboard", name=name, sort=sort))
    if screen.wrote(*found["rows"]):
        return
    cuts = ("0|123", "01|23", "012|3")
    screen.table(
        ("judge", "kappa", "95 %", "tau-b", "alpha", "rho", *cuts, "bias", "invalid"),
        (_format_row(row, cuts) for row in found["rows"]),
    )
    for row in found["left_out"]:
        screen.note(f"[yellow]{escape(row['judge'])} is not shown:[/] {escape(row['reason'])}")


def _format_row(row: dict[str, Any], cuts: tuple[str, ...]) -> tuple[str, ...]:
    return (
        f"[bold]{escape(row['judge'])}[/]",
        format_figure(row["kappa"]),
        format_interval(row["kappa_interval"]),
        *(format_figure(row[name]) for name in ("tau_b", "alpha", "rho")),
        *(format_figure(row["kappa_by_cut"][cut]) for cut in cuts),
        format_figure(row["bias"]),
        f"{row['invalid_share']:.1%}",
    )


def _print_terciles(screen: Screen, name: str, block: list[dict[str, Any]]) -> None:
    screen.out.print()
    columns, figures = (name.replace("_", " "), "pairs", "bias", "kappa"), ("bias", "kappa")
    screen.table(
        columns,
        (
            (f"{one['lowest']:g}–{one['highest']:g}", str(one["pairs"]), *(format_figure(one[key]) for key in figures))
            for one in block
        ),
    )
