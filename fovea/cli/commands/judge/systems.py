"""Commands of `fovea judge` about systems: do they differ, what are their scores, how many labels does that take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import (
    Measure,
    Runs,
    compute,
    compute_as_job,
    format_figure,
    format_interval,
    read_runs,
)
from fovea.cli.common_options import GatewayOptions

AllLabels = Annotated[Path, typer.Argument(metavar="JUDGE", help="The judge's labels of all queries.")]


def significance(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Qrels, or JSON lines of a batch.")],
    runs: Runs,
    measure: Measure = "ndcg_cut_10",
    baseline: Annotated[str | None, typer.Option(help="Compare with this system only.")] = None,
    correction: Annotated[str, typer.Option(help="holm, fdr, max-t, bonferroni or none.")] = "holm",
    level: Annotated[float, typer.Option(help="Significance level of the corrected p-values.")] = 0.05,
    *,
    gateway: GatewayOptions,
) -> None:
    """Test which differences between systems are more than chance, query by query."""
    screen, options = gateway.screen, {"baseline": baseline, "correction": correction, "level": level}
    files = {"labels": labels, "runs": read_runs(runs)}
    found = compute_as_job("significance", gateway, measure=measure, **files, **options)
    if screen.wrote(found):
        return
    screen.table(
        ("system", f"{measure}, {found['queries']} queries"),
        ((escape(name), format_figure(value)) for name, value in found["systems"].items()),
    )
    for row in found["comparisons"]:
        screen.out.print(escape(row["statement"]), highlight=False)


def correct_scores(
    human: Annotated[Path, typer.Argument(metavar="HUMAN", help="Qrels by people, of some queries.")],
    judge: AllLabels,
    runs: Runs,
    measure: Measure = "ndcg_cut_10",
    *,
    gateway: GatewayOptions,
) -> None:
    """Correct system scores under a judge's labels by a human sample of queries, with intervals."""
    screen, files = gateway.screen, {"human": human, "judge": judge, "runs": read_runs(runs)}
    found = compute_as_job("corrected", gateway, measure=measure, **files)
    if screen.wrote(found):
        return
    screen.table(
        ("system", "judge alone", "people alone", "95 %", "corrected", "95 %", "labels worth"),
        (
            (
                escape(row["system"]),
                format_figure(row["judge_only"]),
                format_figure(row["human_only"]),
                format_interval(row["human_interval"]),
                format_figure(row["corrected"]),
                format_interval(row["interval"]),
                f"× {row['gain']:.2f}",
            )
            for row in found["systems"]
        ),
    )
    for row in found["differences"]:
        screen.out.print(escape(row["statement"]), highlight=False)


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """The interval that the labels are planned for."""

    half_width: Annotated[float, typer.Option("--half-width", "-w", help="Half the width of the interval.")]
    between: Annotated[tuple[str, str] | None, typer.Option(help="Plan for the difference of two systems.")] = None
    total: Annotated[int | None, typer.Option(help="Planned number of queries; default: the judge's.")] = None


def budget(
    human: Annotated[Path, typer.Argument(metavar="PILOT", help="Qrels by people, of a few queries.")],
    judge: AllLabels,
    runs: Runs,
    *,
    target: PlanTarget,
    measure: Measure = "ndcg_cut_10",
    gateway: GatewayOptions,
) -> None:
    """Plan how many queries people must label for an interval this wide, with the judge's help and without."""
    first, second = target.between or (None, None)
    aim = {"half_width": target.half_width, "total": target.total, "first": first, "second": second}
    screen, files = gateway.screen, {"human": human, "judge": judge, "runs": read_runs(runs)}
    found = compute("budget", gateway, measure=measure, **aim, **files)
    if screen.wrote(found):
        return
    for plan in found["plans"]:
        screen.out.print(escape(plan["statement"]), highlight=False)
        screen.table(
            ("labelled queries", "± with the judge", "± without"),
            ((str(count), format_figure(helped), format_figure(alone)) for count, helped, alone in plan["curve"]),
        )
