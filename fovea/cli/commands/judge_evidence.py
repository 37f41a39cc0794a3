"""Commands of `fovea judge` that ask for evidence: is a judge worth believing, do two systems differ, how many labels.

What may take longer than a request runs as a job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fovea import judge_endpoints
from fovea.cli.commands.judge_metrics import format_figure
from fovea.cli.common_options import AsJson, Connection, Key, Url
from fovea.cli.job_progress import run_as_job
from fovea.cli.output import Screen
from fovea.cli.text_files import read_text, write_text
from fovea.transport import LOCAL
from shared.errors import InvalidOption

__all__ = ["budget", "correct_scores", "import_collection", "preferences", "significance", "trust", "weights"]

Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="Qrels by people; may be .gz.")]
Judge = Annotated[Path, typer.Argument(metavar="JUDGE", help="JSON lines of a batch, a run, or qrels.")]
Topics = Annotated[Path, typer.Option(help="qid<TAB>text lines, or JSON lines.")]
Passages = Annotated[Path, typer.Option(help="JSON lines with id and text.")]
Runs = Annotated[list[Path], typer.Option("--run", help="TREC run; may be repeated.")]
Measure = Annotated[str, typer.Option(help="ndcg_cut_10, map, P_5, recip_rank, recall_100 …")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write to.", show_default=False)]


def trust(
    reference: Reference,
    judge: Judge,
    topics: Topics,
    passages: Passages,
    embedding: Annotated[bool, typer.Option(help="Compare with the sentence embedder too.")] = True,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Say whether a judge is better than BM25 and embeddings on a labelled sample; exit code 1 if it is not."""
    body = {
        "reference": read_text(reference),
        "judge": read_text(judge),
        "topics": read_text(topics),
        "passages": read_text(passages),
        "name": judge.name.removesuffix(".gz").rsplit(".", 1)[0][:60],
        "embedding": embedding,
    }
    screen = Screen(as_json=as_json)
    found = _run_job("trust", body, screen, url, key)
    if as_json:
        screen.line(found)
    else:
        screen.out.print(f"[bold]{escape(found['statement'])}[/]")
        rows = [found["judge"], *found["baselines"]]
        columns = ("pair_order", "tau", "kappa", "lead")
        screen.table(
            ("", *(cell for name in columns for cell in (name.replace("_", " "), "95 %"))),
            (
                (
                    escape(row["name"]),
                    *(cell for name in columns for cell in (format_figure(row[name]), _span(row[f"{name}_interval"]))),
                )
                for row in rows
            ),
        )
        for note in found["notes"]:
            screen.note(f"[yellow]{escape(note)}[/]")
    if not found["is_better"]:
        raise typer.Exit(1)


def weights(
    reference: Reference,
    judges: Annotated[list[Path], typer.Argument(metavar="JUDGE…", help="JSON lines of batches, one per judge.")],
    output: Output = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Fit weights of several judges' signals; -o gets the options for `fovea judge batch -j ensemble --options`."""
    named = {path.name.removesuffix(".gz").rsplit(".", 1)[0]: read_text(path) for path in judges}
    found = _compute("ensembles/weights", {"reference": read_text(reference), "judges": named}, url, key)
    screen = Screen(as_json=as_json)
    if as_json:
        screen.line(found)
    else:
        screen.facts(
            {
                "pairs": str(found["pairs"]),
                "pair order, weighted": f"{format_figure(found['pair_order'])}   (on queries left out)",
                "pair order, equal": format_figure(found["pair_order_equal"]),
            }
        )
        screen.table(
            ("judge", "weight", "pair order alone"),
            (
                (escape(m["judge"]), format_figure(m["weight"]), format_figure(m["pair_order"]))
                for m in found["members"]
            ),
        )
    if output is not None:
        if found["options"] is None:
            detail = "A judge's file names no template, so its signal can't be asked for again."
            raise InvalidOption(detail, hint="Give the JSON lines of batches.", field="judges")
        write_text(output, json.dumps(found["options"], indent=1).encode())


def significance(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Qrels, or JSON lines of a batch.")],
    runs: Runs,
    measure: Measure = "ndcg_cut_10",
    baseline: Annotated[str | None, typer.Option(help="Compare with this system only.", show_default=False)] = None,
    correction: Annotated[str, typer.Option(help="holm, fdr, max-t, bonferroni or none.")] = "holm",
    level: Annotated[float, typer.Option(help="Corrected p at which a difference counts.")] = 0.05,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Test which differences between systems are more than chance, query by query."""
    body = {
        "labels": read_text(labels),
        "runs": "".join(map(read_text, runs)),
        "measure": measure,
        "baseline": baseline,
        "correction": correction,
        "level": level,
    }
    screen = Screen(as_json=as_json)
    found = _run_job("significance", body, screen, url, key)
    if as_json:
        screen.line(found)
        return
    screen.table(
        ("system", f"{measure}, {found['queries']} queries"),
        ((escape(name), format_figure(value)) for name, value in found["systems"].items()),
    )
    for row in found["comparisons"]:
        screen.out.print(escape(row["statement"]), highlight=False)


def correct_scores(
    human: Annotated[Path, typer.Argument(metavar="HUMAN", help="Qrels by people, of some queries.")],
    judge: Annotated[Path, typer.Argument(metavar="JUDGE", help="The judge's labels of all queries.")],
    runs: Runs,
    measure: Measure = "ndcg_cut_10",
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Correct system scores under a judge's labels by a human sample of queries, with intervals."""
    body = {
        "human": read_text(human),
        "judge": read_text(judge),
        "runs": "".join(map(read_text, runs)),
        "measure": measure,
    }
    screen = Screen(as_json=as_json)
    found = _run_job("corrected", body, screen, url, key)
    if as_json:
        screen.line(found)
        return
    screen.table(
        ("system", "judge alone", "people alone", "95 %", "corrected", "95 %", "labels worth"),
        (
            (
                escape(row["system"]),
                format_figure(row["judge_only"]),
                format_figure(row["human_only"]),
                _span(row["human_interval"]),
                format_figure(row["corrected"]),
                _span(row["interval"]),
                f"× {row['gain']:.2f}",
            )
            for row in found["systems"]
        ),
    )
    for row in found["differences"]:
        screen.out.print(escape(row["statement"]), highlight=False)


def budget(
    human: Annotated[Path, typer.Argument(metavar="PILOT", help="Qrels by people, of a few queries.")],
    judge: Annotated[Path, typer.Argument(metavar="JUDGE", help="The judge's labels of all queries.")],
    runs: Runs,
    half_width: Annotated[float, typer.Option("--half-width", "-w", help="Half the width of the interval.")],
    between: Annotated[
        tuple[str, str] | None, typer.Option(help="Plan for the difference of two systems.", show_default=False)
    ] = None,
    total: Annotated[
        int | None, typer.Option(help="Queries there will be; left out, the judge's.", show_default=False)
    ] = None,
    measure: Measure = "ndcg_cut_10",
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Plan how many queries people must label for an interval this wide, with the judge's help and without."""
    first, second = between or (None, None)
    body = {
        "human": read_text(human),
        "judge": read_text(judge),
        "runs": "".join(map(read_text, runs)),
        "measure": measure,
        "half_width": half_width,
        "total": total,
        "first": first,
        "second": second,
    }
    found = _compute("budget", body, url, key)
    screen = Screen(as_json=as_json)
    if as_json:
        screen.line(found)
        return
    for plan in found["plans"]:
        screen.out.print(escape(plan["statement"]), highlight=False)
        screen.table(
            ("labelled queries", "± with the judge", "± without"),
            ((str(count), format_figure(helped), format_figure(alone)) for count, helped, alone in plan["curve"]),
        )


def import_collection(
    documents: Annotated[Path, typer.Argument(help="Documents, records `.I .T .W`; may be .gz.")],
    topics: Annotated[Path, typer.Argument(help="Topics, records `.I .W`.")],
    relevance: Annotated[Path, typer.Argument(help="Relevance lines, `qid docid code` or TREC's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    others: Annotated[int, typer.Option(help="Per topic, label so many of BM25's best unjudged passages 0.")] = 0,
    grades: Annotated[
        list[str] | None,
        typer.Option("--grade", help="CODE=GRADE; left out, 1=3 2=2 3=1 4=1 5=0.", show_default=False),
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Import a collection of Cranfield's form: topics.tsv, passages.jsonl, qrels.txt and a BM25 run."""
    body = {
        "documents": read_text(documents),
        "topics": read_text(topics),
        "relevance": read_text(relevance),
        "others": others,
        "grades": dict(_parse_grade(pair) for pair in grades) if grades else None,
    }
    screen = Screen(as_json=False)
    found = _run_job("collection", body, screen, url, key)
    output.mkdir(parents=True, exist_ok=True)
    names = {"topics": "topics.tsv", "passages": "passages.jsonl", "qrels": "qrels.txt", "run": "bm25.trec"}
    for field, name in names.items():
        (output / name).write_text(found[field], "utf8")
        screen.note(f"wrote {output / name} ({found[field].count(chr(10))} lines)")
    for note in found["notes"]:
        screen.note(f"[yellow]{escape(note)}[/]")


def preferences(
    topics: Topics,
    passages: Passages,
    reference: Annotated[Path, typer.Option(help="Qrels by people.")],
    sample: Annotated[int, typer.Option("--sample", "-n", min=2, max=500, help="Comparisons to draw.")] = 40,
    llm: Annotated[str | None, typer.Option(help="Language model at the judge's endpoint.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Compare passages in both orders with a pairwise judge, and measure its order and length bias."""
    body = {
        "topics": read_text(topics),
        "passages": read_text(passages),
        "reference": read_text(reference),
        "sample": sample,
        "llm": llm,
        "seed": seed,
    }
    screen = Screen(as_json=as_json)
    found = _run_job("preferences", body, screen, url, key)
    if as_json:
        screen.line(found)
        return
    screen.out.print(escape(found["statement"]), highlight=False)
    names = ("consistent", "shown_first", "longer", "accuracy", "single_order_accuracy")
    screen.table(
        ("", "share", "95 %", "cases", "p"),
        (
            (
                name.replace("_", " "),
                f"{row['share']:.3f}",
                _span(row["interval"]),
                str(row["cases"]),
                f"{row['p']:.3g}",
            )
            for name, row in ((name, found[name]) for name in names)
            if row is not None
        ),
    )


def _span(ends: list[float] | None) -> str:
    return f"{ends[0]:.3f} … {ends[1]:.3f}" if ends else ""


def _parse_grade(pair: str) -> tuple[str, int]:
    code, _, grade = pair.partition("=")
    try:
        return str(int(code)), int(grade)
    except ValueError as error:
        raise InvalidOption(f"--grade {pair} is not CODE=GRADE.", hint="For example --grade 1=3.") from error


def _compute(what: str, body: dict[str, Any], url: str, key: str | None) -> Any:
    with Connection(url, key).open() as client:
        return client.send(judge_endpoints.compute(what, body))


def _run_job(what: str, body: dict[str, Any], screen: Screen, url: str, key: str | None) -> Any:
    with Connection(url, key).open() as client:
        return run_as_job(client, screen, judge_endpoints.compute(what, body))
