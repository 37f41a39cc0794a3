"""`python -m loadtests.mini_judgements URL`: judges grade the mini-collection, and their verdicts are stored.

The files are `judgements/` of the service's `data/mini`, and runs made of them, from which the leaderboard and tables
of the docs come. Signals become grades by cuts fitted on the other queries' labels, so no query's grades depend on its
own labels.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.judge import Judge
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.baselines import bm25, overlap
from services.relevance_judge.metrics.calibration import fit, grade_across_queries
from services.relevance_judge.parsing.label_formats import format_labels
from services.relevance_judge.parsing.trec import format_run
from services.relevance_judge.schemas import JudgeIn, Pair
from services.relevance_judge.storage.mini_collection import Collection, load_mini_collection
from shared.registry import CallContext
from shared.registry.discovery import servables

Row = dict[str, Any]

RANKERS: Mapping[str, Callable[[str, Mapping[str, str]], dict[str, float]]] = {"overlap": overlap, "bm25": bm25}
"""Lexical rankers whose runs are in `runs/`."""

RUN_DEPTH = 20

SETUPS = {
    "similarity": ("similarity", "similarity"), "query-lift": ("query-likelihood", "query-lift"),
    "query-likelihood": ("query-likelihood", "query-likelihood"), "prompted-direct": ("prompted-grade", "direct"),
    "digits": ("log-odds", "digits"), "yes-no": ("log-odds", "yes-no"),
}  # fmt: skip
"""File → judge and template."""


def judge_collection(judge: Judge, template: str, collection: Collection, *, concurrency: int = 2) -> list[Row]:
    """Judge all labelled pairs once each; one row per pair, in the order of the labels."""
    pairs = list(collection.labels)
    request = JudgeIn.model_validate(
        {"pairs": [{"query": "-", "passage": "-"}], "template": template, "seed": 1, "retries": 0}
    )

    def judge_one(pair: tuple[str, str]) -> Row:
        shown = Pair(query=collection.topics[pair[0]], passage=collection.passages[pair[1]])
        return judge.judge_pair(shown, request, CallContext()).model_dump(mode="json", exclude_none=True)

    with ThreadPoolExecutor(concurrency) as pool:
        found = list(pool.map(judge_one, pairs))
    return [{"qid": qid, "docid": docid, **row} for (qid, docid), row in zip(pairs, found, strict=True)]


def judge_by_overlap(collection: Collection) -> list[Row]:
    """Judge by word overlap: the baseline that needs no model."""
    return [
        {
            "qid": qid,
            "docid": docid,
            "signal": overlap(collection.topics[qid], {docid: collection.passages[docid]})[docid],
        }
        for qid, docid in collection.labels
    ]


def build_run(collection: Collection, ranker: str) -> str:
    """A lexical ranker's run over all passages, as TREC lines: what scores above 0, at most `RUN_DEPTH` per query."""
    ranked = {}
    for query, text in collection.topics.items():
        scores = RANKERS[ranker](text, collection.passages)
        best = sorted((name for name in scores if scores[name] > 0), reverse=True)
        best.sort(key=lambda name: scores[name], reverse=True)
        ranked[query] = [(name, scores[name]) for name in best[:RUN_DEPTH]]
    return format_run(ranked, ranker)


def add_grades(rows: Sequence[Row], collection: Collection) -> list[Row]:
    """Add grades to rows with a signal, by cuts at the label shares of all other queries."""
    signals = [float(row["signal"]) for row in rows]
    truth = [collection.labels[row["qid"], row["docid"]] for row in rows]
    queries = [row["qid"] for row in rows]
    grades = grade_across_queries(signals, truth, queries).tolist()
    return [
        {**row, "grade": grade, "valid": True, "reason": None, "flags": []}
        for row, grade in zip(rows, grades, strict=True)
    ]


def main(
    url: Annotated[str, typer.Argument(help="An OpenAI-compatible endpoint with echo and log-probabilities.")],
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETUPS)}.")] = None,
) -> None:
    """Measure the judges and rewrite their files."""
    collection = load_mini_collection()
    found = servables("relevance-judge").items()
    judges = {name: kind for name, kind in found if issubclass(kind, Judge)}
    folder: Path = collection.folder / "judgements"
    folder.mkdir(exist_ok=True)
    results = {"overlap": add_grades(judge_by_overlap(collection), collection)}
    for name in only or SETUPS:
        judge, template = SETUPS[name]
        rows = judge_collection(judges[judge](ChatClient(url)), template, collection)
        results[name] = rows
        if all("signal" in row for row in rows):
            results[name] = add_grades(rows, collection)
            if name != "query-lift":  # ranks the passages of a query as query-likelihood does
                (collection.folder / "runs" / f"{name}.trec").write_text(
                    format_run(_rank_signals(results[name]), name), "utf8"
                )
        (folder / f"{name}.jsonl").write_text(format_labels(map(_round_floats, results[name]), "jsonl"), "utf8")
        typer.echo(_format_line(name, results[name], collection))
    (folder / "overlap.jsonl").write_text(format_labels(map(_round_floats, results["overlap"]), "jsonl"), "utf8")
    typer.echo(_format_line("overlap", results["overlap"], collection))


def _round_floats(row: Row) -> Row:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def _rank_signals(rows: Sequence[Row]) -> dict[str, list[tuple[str, float]]]:
    """How a judge ranks the passages that were labelled for each query."""
    queries: dict[str, list[tuple[str, float]]] = {row["qid"]: [] for row in rows}
    for row in sorted(rows, key=lambda row: -row["signal"]):
        queries[row["qid"]].append((row["docid"], row["signal"]))
    return queries


def measure_judge(rows: Sequence[Row], collection: Collection) -> dict[str, float | None]:
    """Measure a judge: kappa of its grades; rank correlation and order within queries of its signals or grades."""
    graded = {(row["qid"], row["docid"]): row["grade"] for row in rows if row.get("grade") is not None}
    agreement = agree(collection.labels, graded)
    with_signal = [row for row in rows if row.get("signal", row.get("grade")) is not None]
    truth = [collection.labels[row["qid"], row["docid"]] for row in with_signal]
    signals = [row.get("signal", row.get("grade")) for row in with_signal]
    order = fit(signals, truth, [row["qid"] for row in with_signal]).metrics if with_signal else {}
    return {
        "pairs": len(rows),
        "invalid": sum(not row["valid"] for row in rows),
        "kappa": agreement.kappa,
        "kappa_quadratic": agreement.kappa_quadratic,
        "alpha": agreement.alpha,
        "spearman": order.get("spearman"),
        "pair_order": order.get("pair_order"),
    }


def _format_line(name: str, rows: Sequence[Row], collection: Collection) -> str:
    measures = measure_judge(rows, collection).items()
    return f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in measures if value is not None)


if __name__ == "__main__":
    typer.run(main)
