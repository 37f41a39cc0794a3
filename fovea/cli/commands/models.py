"""`fovea models [ID]`: lists the served models, or shows the card of one."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.api.model import ModelEntry, pick_headline, sparsity_in_words
from fovea.cli.common_options import GatewayOptions
from fovea.cli.output import Screen, format_figure
from fovea.cli.schema_options import describe_options
from fovea.results import ModelCard


def models(
    name: Annotated[str | None, typer.Argument(metavar="ID", help="Show this model's card.")] = None,
    task: Annotated[str | None, typer.Option(help="List only models of this task.")] = None,
    *,
    gateway: GatewayOptions,
) -> None:
    """List the served models, or show one model's card."""
    screen = gateway.screen
    with gateway.open() as client:
        if name is not None:
            _print_card(screen, client.model(name))
            return
        entries = client.models(task)
        if task is not None and not entries:
            client.default_model(task)  # raises NotFound, with the tasks there are
    if screen.wrote(*entries):
        return
    if not entries:
        screen.note("No model is served yet. `fovea doctor` shows what is missing.")
        return
    screen.table(("model", "task", "service", "ready", "here / paper"), map(_row, entries), head=False)


def _row(entry: ModelEntry) -> tuple[str, ...]:
    ready = "[green]yes[/]" if entry.ready else "[yellow]not yet[/]"
    return (f"[bold]{escape(entry.id)}[/]", entry.task, entry.service, ready, _format_headline(entry))


def _format_headline(entry: ModelEntry) -> str:
    metric = pick_headline((entry.model_extra or {}).get("metrics") or ())
    if metric is None:
        return "[dim]–[/]"
    made = " [yellow]synthetic[/]" if metric.is_synthetic else ""
    return f"{format_figure(metric.ours)}{made} / {format_figure(metric.paper)} [dim]{escape(metric.name)}[/]"


def _print_card(screen: Screen, card: ModelCard) -> None:
    if screen.wrote(card.model_dump(mode="json", by_alias=True)):
        return
    options = {f"--{name.replace('_', '-')}": about for name, about in describe_options(card.request_schema)}
    if screen.is_tsv:  # rows of one table
        facts = {"model": card.id, "ready": "yes" if card.ready else "not yet", "summary": card.summary}
        screen.facts({**facts, **dict(_list_facts(card)), **options})
        return
    screen.out.print(f"[bold]{escape(card.id)}[/]  {'[green]ready[/]' if card.ready else '[yellow]not ready[/]'}")
    screen.text(card.summary)
    screen.out.print()
    screen.facts(dict(_list_facts(card)))
    if options:
        screen.out.print("\n[bold]Options[/]")
        screen.facts(options)


def _list_facts(card: ModelCard) -> Iterator[tuple[str, Any]]:
    extra = card.model_extra or {}
    yield "task", card.task
    yield "service", card.service
    if paper := extra.get("paper"):
        yield "paper", f"{paper['title']}, {paper['venue']} {paper['year']}"
    yield "variant", extra.get("variant")
    yield "licence", card.licence
    for metric in extra.get("metrics") or ():
        ours, paper = format_figure(metric.get("ours")), format_figure(metric.get("paper"))
        yield metric["name"], f"{ours} here, {paper} in the paper ({metric['data']})"
    limits = (extra.get("limits") or {}).items()
    yield "limits", ", ".join(f"{name} {value}" for name, value in limits if value is not None)
    if claim := extra.get("sparsity"):
        yield "sparsity", sparsity_in_words(claim)
    for number, note in enumerate(extra.get("notes") or ()):
        yield "notes" if number == 0 else " " * (number + 1), note
