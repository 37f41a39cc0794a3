"""Commands of `fovea judge` about answers: the facts that they hold, and what supports them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea.cli.commands.judge.options import Llm, Passages, compute_as_job, format_figure, read_json
from fovea.cli.common_options import GatewayOptions
from fovea.cli.text_files import read_text, write_text
from fovea.errors import Malformed

Query = Annotated[str, typer.Argument(help="The query.")]
Answer = Annotated[Path | None, typer.Option(help="Text file of the answer; - is standard input.")]


@dataclass(frozen=True, slots=True)
class SupportCheck:
    """How it is decided whether a text supports a fact."""

    how: Annotated[str, typer.Option(help="model, or similarity, which needs no language model.")] = "model"
    llm: Llm = None


def nuggets(
    query: Query,
    passages: Annotated[Path | None, typer.Option(help="Make nuggets of these JSON lines.")] = None,
    facts: Annotated[Path | None, typer.Option("--nuggets", help="Look for the nuggets of this file.")] = None,
    answer: Answer = None,
    *,
    check: SupportCheck,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the nuggets, JSON.")] = None,
    gateway: GatewayOptions,
) -> None:
    """Make nuggets of passages, and with --answer find them in an answer: nugget recall and precision."""
    screen = gateway.screen
    options = {"query": query, "how": check.how, "llm": check.llm}
    if facts is not None:
        known = read_json(facts, list)
    else:
        known = compute_as_job("nuggets", gateway, passages=_passages(passages), **options)["nuggets"]
    if output is not None:
        write_text(output, json.dumps(known, indent=1, ensure_ascii=False).encode())
    if answer is None:
        rows = ((one["importance"], escape(one["text"]), escape(" ".join(one["passages"]))) for one in known)
        if not screen.wrote(known):
            screen.table(("importance", "nugget", "passages"), rows)
        return
    found = compute_as_job("nuggets/assign", gateway, answer=answer, nuggets=known, **options)
    if screen.wrote(found):
        return
    names = ("vital_recall", "strict_vital_recall", "all_recall", "strict_all_recall", "precision", "f1")
    held = [
        (support.replace("_", " "), one["importance"], escape(one["text"]))
        for support, one in zip(found["supports"], known, strict=True)
    ]
    screen.sections(_format_figures(found, *names), [("nuggets", ("held", "importance", "nugget"), held)])


def support(
    query: Query,
    passages: Passages,
    answer: Annotated[Path, typer.Option(help="Text file of the answer, which cites passages as \\[id].")],
    *,
    check: SupportCheck,
    gateway: GatewayOptions,
) -> None:
    """Check each sentence of an answer against the passages that it cites, and against all."""
    screen = gateway.screen
    options = {"query": query, "how": check.how, "llm": check.llm, "passages": _passages(passages)}
    found = compute_as_job("support", gateway, answer=answer, **options)
    if screen.wrote(found):
        return
    figures = _format_figures(found, "citation_precision", "citation_recall", "faithfulness")
    rows = [
        (
            one["best"].replace("_", " "),
            escape(one["best_passage"] or "–"),
            escape(", ".join(f"{name}: {held.replace('_', ' ')}" for name, held in one["cited"].items())),
            escape(one["text"]),
        )
        for one in found["sentences"]
    ]
    screen.sections(figures, [("sentences", ("best", "passage", "cited", "sentence"), rows)])


def _format_figures(found: Mapping[str, Any], *names: str) -> dict[str, str]:
    return {name.replace("_", " "): format_figure(found[name]) for name in names}


def _passages(path: Path | None) -> dict[str, str]:
    if path is None:
        raise typer.BadParameter("Give --passages, or --nuggets with --answer.")
    try:
        rows = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
    except ValueError as error:
        raise Malformed(f"{path.name} is not JSON.") from error
    if not all(isinstance(row, dict) and {"id", "text"} <= set(row) for row in rows):
        raise Malformed(f"{path.name} is not JSON lines with id and text.")
    found: dict[str, str] = {}
    for row in rows:
        if found.setdefault(str(row["id"]), row["text"]) != row["text"]:
            raise Malformed(f"The id {row['id']} comes again in {path.name}, with another text.")
    return found
