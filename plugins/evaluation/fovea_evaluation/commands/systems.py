"""Commands of `fovea judge` about systems: how they rank, whether they differ, their scores, and labels that it takes.

Wherever there are runs, kappa and tau are shown side by side, because one says nothing about the other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.commands.judge.metrics import Labels, Reference
from fovea.cli.commands.judge.options import (
    compute,
    compute_as_job,
    fetch,
    format_figure,
    format_interval,
    read_judges,
    read_runs,
)  # fmt: skip
from fovea.cli.common_options import GatewayOptions

Measure = Annotated[str, typer.Option(help="ndcg_cut_10, map, P_5, recip_rank, recall_100 …")]
Runs = Annotated[list[Path], typer.Option("--run", help="TREC run; may be repeated.")]
AnyRuns = Annotated[list[Path] | None, typer.Option("--run", help="TREC run; may be repeated.")]
AllLabels = Annotated[Path, typer.Argument(metavar="JUDGE", help="The judge's labels of all queries.")]


def rankings(
    reference: Reference,
    judge: Labels,
    runs: AnyRuns = None,
    measure: Measure = "ndcg_cut_10",
    families: Annotated[
        list[str] | None, typer.Option("--family", help="SYSTEM=FAMILY, to measure self-preference.")
    ] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Rank systems under both label sets: tau, rho, kappa, and how far each system moved.

    A labelled query that a run lacks counts 0, as with trec_eval -c; so it does in significance and leaderboard.
    """
    screen, named = gateway.screen, dict(pair.partition("=")[::2] for pair in families or ())
    files = {"reference": reference, "judge": judge, "runs": read_runs(runs)}
    found = compute("rankings", gateway, measure=measure, families=named, **files)
    if screen.wrote(found):
        return
    figures = {"tau-b": "tau_b", "rho": "rho", "tau-AP": "tau_ap", "kappa": "kappa", "alpha": "alpha"}
    figures |= {"self-preference": "self_preference"} if families else {}
    facts = {label: format_figure(found[name]) for label, name in figures.items()}
    rows = [
        (escape(row["system"]), format_figure(row["reference"]), format_figure(row["judge"]), f"{row['shift']:+g}")
        for row in found["systems"]
    ]
    screen.sections(facts, [("systems", ("system", "reference", "judge", "shift"), rows)])


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
    """Test which differences between systems are more than chance; a query that a run lacks counts 0."""
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
        screen.title(escape(row["statement"]))


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
    rows = (
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
    )
    alone = ("judge alone", "people alone", "people, 95 %")
    screen.table(("system", *alone, "corrected", "corrected, 95 %", "labels worth"), rows)
    for row in found["differences"]:
        screen.title(escape(row["statement"]))


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
    columns = ("labelled queries", "± with the judge", "± without")
    sections = []
    for plan in found["plans"]:
        screen.title(escape(plan["statement"]))
        rows = [(str(count), *map(format_figure, widths)) for count, *widths in plan["curve"]]
        sections.append((plan["target"], columns, rows))
    screen.sections({}, sections)


def leaderboard(
    labels: Annotated[
        list[Path] | None, typer.Argument(metavar="REFERENCE JUDGE…", help="Without files: the stored table.")
    ] = None,
    runs: AnyRuns = None,
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
        labelled = [{"judge": judge, "labels": text} for judge, text in read_judges(judges).items()]
        files = {"reference": reference, "runs": read_runs(runs), "judges": labelled}
        found = compute("leaderboard", gateway, measure=measure, sort=sort, name=name, **files)
    else:
        found = fetch("leaderboard", gateway, name=name, sort=sort)
    if not screen.wrote(*found["rows"]):
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
