"""The command `fovea ruler`: evaluates attention methods at equal bytes, exports prompts for peers, compares reports.

Knows the terminal; what is measured is in `run`, and is imported only when the command runs, because it loads torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fovea.cli.text_files import read_text
from fovea_lab.cli import Knobs, Model, parse_knob, parse_numbers, save_report

Out = Annotated[Path | None, typer.Option(help="Report as JSON; predictions (JSONL) and a PNG lie next to.")]
Export = Annotated[Path | None, typer.Option(help="Write the samples as JSONL for a peer, and stop.")]
Peers = Annotated[list[Path] | None, typer.Option("--score", help="A peer's predictions (JSONL) on the same samples.")]
Compare = Annotated[tuple[Path, Path] | None, typer.Option(help="Two reports, side by side; nothing is run.")]


@dataclass(frozen=True, slots=True)
class RulerOptions:
    """Which methods are compared, and on what."""

    method: Annotated[list[str] | None, typer.Option(help="Methods; several times for several.")] = None
    knob: Knobs = None
    budgets: Annotated[str, typer.Option(help="Bytes as shares of dense, comma-separated.")] = "0.5,0.25"
    lengths: Annotated[str, typer.Option(help="Tokens of prompt and answer, comma-separated.")] = "1024"
    tasks: Annotated[str, typer.Option(help="Names, comma-separated, or `all`.")] = ""
    n: Annotated[int, typer.Option("--n", help="Samples per task and length.")] = 10
    questions: Annotated[int, typer.Option(help="Questions per context.")] = 1
    protocol: Annotated[str, typer.Option(help="agnostic, aware or both.")] = "agnostic"
    seed: int = 42

    def build(self) -> dict[str, Any]:
        """Return the options of an evaluation."""
        knobs = dict(map(parse_knob, self.knob or ()))
        return {
            "methods": [{"method": name, **knobs} for name in self.method or ("snapkv",)],
            **{name: parse_numbers(getattr(self, name)) for name in ("budgets", "lengths")},
            **{name: getattr(self, name) for name in ("n", "questions", "protocol", "seed")},
        } | ({"tasks": self.tasks.split(",")} if self.tasks else {})


@dataclass(frozen=True, slots=True)
class Texts:
    """Sources of the samples."""

    qa: Annotated[Path | None, typer.Option(help="Questions for qa_1 and qa_2.", exists=True, dir_okay=False)] = None
    text: Annotated[Path | None, typer.Option(help="Own prose for haystacks.", exists=True, dir_okay=False)] = None

    def read(self) -> str | None:
        """Read the prose; None where none is given."""
        return None if self.text is None else read_text(self.text)


def ruler(
    model: Model = None,
    *,
    asked: RulerOptions,
    texts: Texts,
    out: Out = None,
    export: Export = None,
    score: Peers = None,
    compare: Compare = None,
) -> None:
    """Compare attention methods at equal bytes on RULER-form tasks (never with published RULER tables)."""
    if compare is not None:
        _compare(*compare)
        return
    from fovea_lab.ruler import local, plots  # noqa: PLC0415  # load torch

    options, corpus = asked.build(), texts.read()
    if export is not None:
        local.write_samples(model, options, export, qa=texts.qa, corpus=corpus)
        return
    store = None if out is None else out.with_suffix(".jsonl")
    report = local.evaluate(model, options, qa=texts.qa, corpus=corpus, store=store, peers=score or ())
    print_leaderboards(report.model_dump(by_alias=True, mode="json"))
    save_report(report, out)
    if out is not None:
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
    """Means of two reports next to each other."""
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
        shown = ["" if mean is None else f"{mean:.2f}" for mean in means]
        apart = "" if None in means else f"{means[1] - means[0]:+.2f}"  # type: ignore[operator]
        table.add_row(*map(str, key), *shown, apart)
    Console().print(table)
