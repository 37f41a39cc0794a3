"""Commands of `fovea judge` about a judge's worth: against baselines, and among other judges."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import (
    JudgeLabels,
    Output,
    Passages,
    Reference,
    Topics,
    compute,
    compute_as_job,
    format_figure,
    format_interval,
    read_judges,
)
from fovea.cli.common_options import GatewayOptions
from fovea.cli.text_files import write_text
from fovea.errors import InvalidOption


def trust(
    reference: Reference,
    judge: JudgeLabels,
    topics: Topics,
    passages: Passages,
    embedding: Annotated[bool, typer.Option(help="Also compare with the sentence embedder.")] = True,
    *,
    gateway: GatewayOptions,
) -> None:
    """Say whether a judge is better than BM25 and embeddings on a labelled sample; exit code 1 if it is not."""
    screen, files = gateway.screen, {"reference": reference, "topics": topics, "passages": passages}
    ((name, labels),) = read_judges([judge]).items()
    found = compute_as_job("trust", gateway, name=name[:60], judge=labels, embedding=embedding, **files)
    if not screen.wrote(found):
        screen.title(f"[bold]{escape(found['statement'])}[/]")
        rows = [found["judge"], *found["baselines"]]
        columns = ("pair_order", "tau", "kappa", "lead")
        head = (f"{name.replace('_', ' ')}{more}" for name in columns for more in ("", ", 95 %"))
        screen.table(("judge", *head), ((escape(row["name"]), *_format_measures(row, columns)) for row in rows))
        for note in found["notes"]:
            screen.note(f"[yellow]{escape(note)}[/]")
    if not found["is_better"]:
        raise typer.Exit(1)


def weights(
    reference: Reference,
    judges: Annotated[list[Path], typer.Argument(metavar="JUDGE…", help="JSON lines of batches, one per judge.")],
    output: Output = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """Fit weights of several judges' signals; -o gets the options for `fovea judge batch -j ensemble --options`."""
    screen = gateway.screen
    found = compute("ensembles/weights", gateway, reference=reference, judges=read_judges(judges))
    if not screen.wrote(found):
        facts = {
            "pairs": str(found["pairs"]),
            "pair order, weighted": f"{format_figure(found['pair_order'])}   (on queries left out)",
            "pair order, equal": format_figure(found["pair_order_equal"]),
        }
        rows = [(m["judge"], format_figure(m["weight"]), format_figure(m["pair_order"])) for m in found["members"]]
        screen.tables(facts, [(("judge", "weight", "pair order alone"), rows)])
    if output is not None:
        if found["options"] is None:
            detail = "A judge's file names no template, so its signal can't be asked for again."
            raise InvalidOption(detail, hint="Give the JSON lines of batches.", field="judges")
        write_text(output, json.dumps(found["options"], indent=1).encode())


def _format_measures(row: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Each measure and its interval."""
    for name in names:
        yield format_figure(row[name])
        yield format_interval(row[f"{name}_interval"])
