"""The graded mini-collection that comes with the service: topics, passages, two label passes and runs over them.

Reads files; knows nothing about judges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from services.relevance_judge.metrics.baselines import bm25, overlap
from services.relevance_judge.parsing.label_formats import Given, parse_labels
from services.relevance_judge.parsing.trec import Runs, read_qrels, read_runs, read_topics

__all__ = ["RANKERS", "Collection", "mini", "mini_judgements", "mini_runs", "ranked"]

RANKERS: Mapping[str, Callable[[str, Mapping[str, str]], dict[str, float]]] = {"overlap": overlap, "bm25": bm25}
"""The lexical systems whose runs lie in `runs/`."""

DEPTH = 20


@dataclass(frozen=True)
class Collection:
    """Texts and labels.

    Attributes:
        topics: {qid: query}.
        passages: {docid: text}.
        labels: {(qid, docid): grade} of the first pass; `second` of the second one.
        folder: Where its files are.
    """

    topics: dict[str, str]
    passages: dict[str, str]
    labels: dict[tuple[str, str], int]
    second: dict[tuple[str, str], int]
    folder: Path


def mini() -> Collection:
    """The mini-collection: 24 queries, eight passages each, two of every grade."""
    folder = Path(str(resources.files("services.relevance_judge").joinpath("data", "mini")))
    lines = (folder / "passages.jsonl").read_text("utf8").splitlines()
    rows = [json.loads(line) for line in lines]
    return Collection(
        topics=read_topics(folder / "topics.tsv"),
        passages={row["id"]: row["text"] for row in rows},
        labels=read_qrels(folder / "qrels.txt"),
        second=read_qrels(folder / "qrels_second.txt"),
        folder=folder,
    )


def mini_judgements() -> dict[str, Given]:
    """What judges said of the mini-collection, by judge: the files of `judgements/`, written by batches."""
    files = sorted((mini().folder / "judgements").glob("*.jsonl"))
    return {file.stem: parse_labels(file.read_text("utf8"), file.name) for file in files}


def mini_runs() -> Runs:
    """The runs that lie in `runs/`."""
    files = sorted((mini().folder / "runs").glob("*.trec"))
    return {tag: run for file in files for tag, run in read_runs(file).items()}


def ranked(collection: Collection, system: str) -> str:
    """A lexical system's run over all passages, as TREC lines: what scores above 0, at most `DEPTH` per query."""
    lines = []
    for query, text in collection.topics.items():
        scores = RANKERS[system](text, collection.passages)
        best = sorted((name for name in scores if scores[name] > 0), reverse=True)
        best.sort(key=lambda name: scores[name], reverse=True)
        lines += [
            f"{query} Q0 {name} {rank} {scores[name]:.6f} {system}\n" for rank, name in enumerate(best[:DEPTH], 1)
        ]
    return "".join(lines)
