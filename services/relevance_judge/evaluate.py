"""`python -m services.relevance_judge.evaluate URL`: judges grade the mini-collection, and their verdicts are kept.

Its files are `data/mini/judgements/` and runs made of them, from which the leaderboard and the tables of the page come.
Signals become grades by cuts fitted on the other queries' labels, so no query's grades have seen its own labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from services.relevance_judge.chat_client import Endpoint
from services.relevance_judge.judge import Judge
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.metrics.calibration import fit
from services.relevance_judge.parsing.label_formats import written
from services.relevance_judge.schemas import JudgeIn, Pair
from services.relevance_judge.storage.mini_collection import Collection, mini
from shared.registry import CallContext
from shared.registry.discovery import servables

__all__ = ["SETUPS", "judgements", "measures", "overlap_rows", "run_of", "with_cuts"]

Row = dict[str, Any]

SETUPS = {
    "query-lift": ("query-likelihood", "query-lift"),
    "query-likelihood": ("query-likelihood", "query-likelihood"),
    "prompted-direct": ("prompted-grade", "direct"),
    "digits": ("log-odds", "digits"),
    "yes-no": ("log-odds", "yes-no"),
}
"""File → judge and template."""


def judgements(judge: Judge, template: str, collection: Collection, *, at_once: int = 2) -> list[Row]:
    """A judge's verdicts on all labelled pairs, in the order of the labels; it is asked once per pair."""
    pairs = list(collection.labels)
    request = JudgeIn.model_validate(
        {"pairs": [{"query": "-", "passage": "-"}], "template": template, "seed": 1, "retries": 0}
    )

    def one(pair: tuple[str, str]) -> Row:
        shown = Pair(query=collection.topics[pair[0]], passage=collection.passages[pair[1]])
        return judge.judged(shown, request, CallContext()).model_dump(mode="json", exclude_none=True)

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(one, pairs))
    return [{"qid": qid, "docid": docid, **row} for (qid, docid), row in zip(pairs, found, strict=True)]


def overlap_rows(collection: Collection) -> list[Row]:
    """Word overlap as a judge: the baseline that needs no model."""
    return [
        {
            "qid": qid,
            "docid": docid,
            "signal": overlap(collection.topics[qid], {docid: collection.passages[docid]})[docid],
        }
        for qid, docid in collection.labels
    ]


def with_cuts(rows: Sequence[Row], collection: Collection) -> list[Row]:
    """Rows with a signal get the grade that cuts by label shares of all other queries give it."""
    signals = [float(row["signal"]) for row in rows]
    truth = [collection.labels[row["qid"], row["docid"]] for row in rows]
    queries = [row["qid"] for row in rows]
    cuts = {}
    for held in dict.fromkeys(queries):
        rest = [place for place, query in enumerate(queries) if query != held]
        parts = ([values[place] for place in rest] for values in (signals, truth, queries))
        cuts[held] = fit(*parts)
    return [
        {**row, "grade": cuts[row["qid"]].grade(row["signal"]), "valid": True, "reason": None, "flags": []}
        for row in rows
    ]


def main(
    url: Annotated[str, typer.Argument(help="An OpenAI-compatible endpoint with echo and log-probabilities.")],
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETUPS)}.")] = None,
) -> None:
    """Measure the judges and rewrite their files."""
    collection, judges = mini(), servables("relevance-judge")
    folder: Path = collection.folder / "judgements"
    folder.mkdir(exist_ok=True)
    made = {"overlap": with_cuts(overlap_rows(collection), collection)}
    for name in only or SETUPS:
        kind, template = SETUPS[name]
        judge = judges[kind]
        assert issubclass(judge, Judge)  # noqa: S101  # this service has nothing else
        rows = judgements(judge(Endpoint(url)), template, collection)
        made[name] = rows
        if all("signal" in row for row in rows):
            made[name] = with_cuts(rows, collection)
            if name != "query-lift":  # ranks the passages of a query as query-likelihood does
                (collection.folder / "runs" / f"{name}.trec").write_text(run_of(name, made[name]), "utf8")
        (folder / f"{name}.jsonl").write_text(written(map(_rounded, made[name]), "jsonl"), "utf8")
        typer.echo(_line(name, made[name], collection))
    (folder / "overlap.jsonl").write_text(written(map(_rounded, made["overlap"]), "jsonl"), "utf8")
    typer.echo(_line("overlap", made["overlap"], collection))


def _rounded(row: Row) -> Row:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def run_of(name: str, rows: Sequence[Row]) -> str:
    """A judge's signals as a run, best first: how it would rank the passages that were labelled for each query."""
    queries: dict[str, list[Row]] = {}
    for row in rows:
        queries.setdefault(row["qid"], []).append(row)
    lines = []
    for qid, group in queries.items():
        best = sorted(group, key=lambda row: -row["signal"])
        lines += [f"{qid} Q0 {row['docid']} {rank} {row['signal']:.6f} {name}\n" for rank, row in enumerate(best, 1)]
    return "".join(lines)


def measures(rows: Sequence[Row], collection: Collection) -> dict[str, float | None]:
    """Kappa of the grades; rank correlation and order within queries of the signals, or of the grades without any."""
    graded = {(row["qid"], row["docid"]): row["grade"] for row in rows if row.get("grade") is not None}
    agreed = agree(collection.labels, graded)
    kept = [row for row in rows if row.get("signal", row.get("grade")) is not None]
    truth = [collection.labels[row["qid"], row["docid"]] for row in kept]
    signals = [row.get("signal", row.get("grade")) for row in kept]
    order = fit(signals, truth, [row["qid"] for row in kept]).metrics if kept else {}
    return {
        "pairs": len(rows),
        "invalid": sum(not row["valid"] for row in rows),
        "kappa": agreed.kappa,
        "kappa_quadratic": agreed.kappa_quadratic,
        "alpha": agreed.alpha,
        "spearman": order.get("spearman"),
        "pair_order": order.get("pair_order"),
    }


def _line(name: str, rows: Sequence[Row], collection: Collection) -> str:
    told = measures(rows, collection).items()
    return f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in told if value is not None)


if __name__ == "__main__":
    typer.run(main)
