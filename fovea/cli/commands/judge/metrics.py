"""Commands of `fovea judge` that compute from labels: agreement and ensembles."""

from pathlib import Path
from typing import Annotated

import typer

from fovea.cli.commands.judge.options import compute, format_figure, format_interval
from fovea.cli.common_options import GatewayOptions, OutputFile
from fovea.cli.text_files import read_text, write_text

Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="Reference qrels; may be .gz.")]
Labels = Annotated[Path, typer.Argument(metavar="JUDGE", help="Qrels of the judge, or JSON lines of a batch.")]


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
    counted = ("missing", "extra", "clamped", "clamped_reference")
    more = ", ".join(f"{found[name]} {name.replace('_', ' in the ')}" for name in counted if found.get(name))
    facts = {
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
    cuts = [(cut, kappa, found["alpha_by_cut"][cut]) for cut, kappa in found["kappa_by_cut"].items()]
    grid = [(str(grade), *row) for grade, row in enumerate(found["confusion"])]
    tables = [(("cut", "kappa", "alpha"), cuts), (("reference", *(f"judge {n}" for n in range(len(grid)))), grid)]
    for name, block in (("by length", "by_length"), ("by overlap", "by_overlap")):
        parts = (found["bias_by_text"] or {}).get(block) or ()
        rows = [(f"{one['lowest']:g}–{one['highest']:g}", one["pairs"], one["bias"], one["kappa"]) for one in parts]
        tables.append(((name, "pairs", "bias", "kappa"), rows))
    screen.tables(facts, [(head, [tuple(map(format_figure, row)) for row in rows]) for head, rows in tables if rows])


def ensemble(
    judges: Annotated[list[Path], typer.Argument(metavar="JUDGE…", help="Label files of the judges.")],
    combine: Annotated[str, typer.Option(help="majority, average or median.")] = "majority",
    tie: Annotated[str, typer.Option(help="average, min, max, median or random.")] = "average",
    rounding: Annotated[str, typer.Option(help="half_up or half_even.")] = "half_up",
    weights: Annotated[list[float] | None, typer.Option("--weight", help="One weight per judge.")] = None,
    output: OutputFile = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Combine several label sets into one; writes qrels to -o or to standard output."""
    screen, options = gateway.screen, {"combine": combine, "tie": tie, "rounding": rounding, "weights": weights}
    found = compute("ensembles", gateway, judges=list(map(read_text, judges)), **options)
    if screen.wrote(found) and output is None:
        return
    write_text(output, found["qrels"].encode("utf8"))
    if not found["pairs"]:
        screen.note("[yellow]No pair has a grade. `fovea judge calibrate` fits cuts for signals.[/]")
    if output is not None:
        counts = " · ".join(map(str, found["counts"]))
        screen.note(f"wrote {output} ({found['pairs']} pairs, {counts} per grade)", markup=False)
