"""The command `fovea ruler`: evaluates attention methods at equal bytes, exports prompts for peers, compares reports.

Knows the terminal; what is measured is in `run`, and is imported only when the command runs, because it loads torch.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.llm_longctx.evaluation.cli import Knobs, Model, parse_knob
from shared.errors import InvalidOption

__all__ = ["ruler"]

File = Annotated[Path | None, typer.Option(exists=True, dir_okay=False)]


def ruler(  # options of a command
    model: Model = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods; several times for several.")] = None,
    knob: Knobs = None,
    budgets: Annotated[str, typer.Option(help="Bytes as shares of dense, comma-separated.")] = "0.5,0.25",
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer, comma-separated.")] = "1024",
    tasks: Annotated[str, typer.Option(help="Names, comma-separated, or `all`.")] = "",
    n: Annotated[int, typer.Option(help="Samples per task and length.")] = 10,
    questions: Annotated[int, typer.Option(help="Questions per context.")] = 1,
    protocol: Annotated[str, typer.Option(help="agnostic, aware or both.")] = "agnostic",
    seed: int = 42,
    qa: Annotated[Path | None, typer.Option(help="Questions for qa_1 and qa_2.", exists=True, dir_okay=False)] = None,
    text: Annotated[Path | None, typer.Option(help="Own prose for haystacks.", exists=True, dir_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Report as JSON; predictions (JSONL) and a PNG lie beside.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the samples as JSONL for a peer, and stop.")] = None,
    score: Annotated[list[Path] | None, typer.Option(help="A peer's predictions (JSONL) on the same samples.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two reports, side by side; nothing is run.")
    ] = None,
) -> None:
    """Compare attention methods at equal bytes on RULER-form tasks (never with published RULER tables)."""
    if compare is not None:
        _compare(*compare)
        return
    from services.llm_longctx.evaluation.ruler import peers, plots  # noqa: PLC0415  # load torch
    from services.llm_longctx.evaluation.ruler import run as runs  # noqa: PLC0415
    from services.llm_longctx.evaluation.ruler.local import with_model  # noqa: PLC0415

    knobs = dict(map(parse_knob, knob or ()))
    given: dict[str, Any] = {
        "methods": [{"method": name, **knobs} for name in method or ("snapkv",)],
        "budgets": _numbers(budgets),
        "lengths": _numbers(lengths),
        "n": n,
        "questions": questions,
        "protocol": protocol,
        "seed": seed,
    }
    spec = runs.RulerSpec.model_validate(given | ({"tasks": tasks.split(",")} if tasks else {}))
    corpus = None if text is None else text.read_text("utf-8")
    with with_model(model) as on:
        if export is not None:
            rows = runs.export_samples(on, spec, qa=qa, corpus=corpus)
            export.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            return
        decode = partial(on.tokenizer.decode, special=False)
        with Progress(transient=True) as bar:
            task = bar.add_task("ruler", total=1.0)
            report = runs.run_ruler(
                on,
                spec,
                progress=lambda share, note: bar.update(task, completed=share, description=note),
                qa=qa,
                corpus=corpus,
                store=None if out is None else out.with_suffix(".jsonl"),
                extra=[one for path in score or () for one in peers.read_predictions(path, decode)],
            )
    print_leaderboards(report.model_dump(by_alias=True, mode="json"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report.model_dump_json(indent=1, by_alias=True) + "\n", "utf-8")
        out.with_suffix(".png").write_bytes(plots.draw_means(report))


def print_leaderboards(report: dict[str, Any]) -> None:
    """A table per protocol and length, over tasks that tell methods apart where there are any."""
    leaders = report["leaderboards"]
    shown = [one for one in leaders if one["informative"]] or leaders
    for protocol, length in dict.fromkeys((one["protocol"], one["length"]) for one in shown):
        rows = [one for one in shown if (one["protocol"], one["length"]) == (protocol, length)]
        title = f"RULER-form, {protocol}, {length:,} tokens: {', '.join(rows[0]['tasks'])}"
        table = Table("method", "budget", "bytes", "mean", "95 %", "against dense", "worse/better", "n", title=title)
        for one in rows:
            table.add_row(
                one["method"],
                "" if one["budget"] is None else f"{one['budget']:g}",
                f"{one['bytes']:.3f}",
                f"{one['mean']:.2f}",
                f"{one['low']:.2f} – {one['high']:.2f}",
                f"{one['difference']['mean']:+.2f}",
                f"{one['worse']}/{one['better']}",
                str(one["n"]),
            )
        Console().print(table)


def _compare(first: Path, second: Path) -> None:
    """Means of two reports beside each other."""
    reports = [json.loads(path.read_text("utf-8")) for path in (first, second)]
    tables = [
        {
            (x["protocol"], x["length"], x["method"], x["budget"]): x
            for x in report["leaderboards"]
            if not x["informative"]
        }
        for report in reports
    ]
    table = Table("protocol", "tokens", "method", "budget", first.stem, second.stem, "difference")
    for key in dict.fromkeys((*tables[0], *tables[1])):
        means = [rows[key]["mean"] if key in rows else None for rows in tables]
        told = ["" if mean is None else f"{mean:.2f}" for mean in means]
        apart = "" if None in means else f"{means[1] - means[0]:+.2f}"  # type: ignore[operator]
        table.add_row(*map(str, key), *told, apart)
    Console().print(table)


def _numbers(given: str) -> list[float]:
    try:
        return [float(part) if "." in part else int(part) for part in given.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidOption(f"{given!r} is no comma-separated list of numbers.") from error
