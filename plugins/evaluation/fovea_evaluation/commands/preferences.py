"""`fovea judge preferences`: a pairwise judge, asked in both orders."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import Llm, Passages, Topics, compute_as_job, format_interval
from fovea.cli.common_options import GatewayOptions


def preferences(
    topics: Topics,
    passages: Passages,
    reference: Annotated[Path, typer.Option(help="Qrels by people.")],
    sample: Annotated[
        int, typer.Option("--sample", "-n", min=2, max=500, help="Number of comparisons to sample.")
    ] = 40,
    llm: Llm = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the sample.")] = 0,
    *,
    gateway: GatewayOptions,
) -> None:
    """Compare passages in both orders with a pairwise judge, and measure its order and length bias."""
    screen, files = gateway.screen, {"topics": topics, "passages": passages, "reference": reference}
    found = compute_as_job("preferences", gateway, sample=sample, llm=llm, seed=seed, **files)
    if screen.wrote(found):
        return
    screen.title(escape(found["statement"]))
    names = ("consistent", "shown_first", "longer", "accuracy", "single_order_accuracy")
    rows = (
        (
            name.replace("_", " "),
            f"{row['share']:.3f}",
            format_interval(row["interval"]),
            str(row["cases"]),
            f"{row['p']:.3g}",
        )
        for name, row in ((name, found[name]) for name in names)
        if row is not None
    )
    screen.table(("measure", "share", "95 %", "cases", "p"), rows)
