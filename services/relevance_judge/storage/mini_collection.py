"""Mini-collection: 24 graded topics that come with the service, with passages, two passes of labels, and runs."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from services.relevance_judge.batches.pair_selection import parse_texts
from services.relevance_judge.parsing.trec import read_qrels


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
    return Collection(
        topics=parse_texts((folder / "topics.tsv").read_text("utf8"), "topics"),
        passages=parse_texts((folder / "passages.jsonl").read_text("utf8"), "passages"),
        labels=read_qrels(folder / "qrels.txt"),
        second=read_qrels(folder / "qrels_second.txt"),
        folder=folder,
    )
