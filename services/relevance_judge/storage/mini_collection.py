"""Mini-collection: 24 graded topics that come with the service, with passages, two passes of labels, and runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from services.relevance_judge.parsing.label_formats import LabelSet, parse_labels
from services.relevance_judge.parsing.trec import Runs, read_qrels, read_runs, read_topics


@dataclass(frozen=True)
class Collection:
    """A test collection: texts and labels.

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


def load_mini_collection() -> Collection:
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


def load_mini_judgements() -> dict[str, LabelSet]:
    """Labels of the mini-collection by judge, from the files of `judgements/`."""
    files = sorted((load_mini_collection().folder / "judgements").glob("*.jsonl"))
    return {file.stem: parse_labels(file.read_text("utf8"), file.name) for file in files}


def load_mini_runs() -> Runs:
    """The runs of `runs/`."""
    files = sorted((load_mini_collection().folder / "runs").glob("*.trec"))
    return {tag: run for file in files for tag, run in read_runs(file).items()}
