"""The default judge against the small embedder and BM25: which of a relevant and another document comes first.

Collections are docstrings of installed packages (`loadtests.docstrings`), and those in folders of `--data`: Cranfield,
and what `loadtests.labelled` writes. Others are BM25's best documents without a label, or random ones. Figures are
means over topics; intervals come from a bootstrap over topics, that of a lead from the topics' differences.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fovea_evaluation.imported_collection import ImportedCollection, parse_collection
from fovea_evaluation.metrics.significance import mean_interval
from loadtests.bench.result import Row, Table
from services.relevance_judge.embeddings import embed_windows, judging_embedders, load_embedder
from services.relevance_judge.metrics.baselines import LexicalIndex
from services.relevance_judge.metrics.pair_order import order_counts
from shared.lm.bundled_models import MINILM

FILES = ("cran.all.1400", "cran.qry", "cranqrel"), ("documents", "topics", "relevance")
TITLES = {"cranfield": "Cranfield", "packages": "Debian packages", "news": "news"}
"""Folder of `--data` → name of its collection; other folders keep theirs."""

HARDEST, RANDOM = 5, 20
"""Others of a topic: BM25's best, and drawn ones."""

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Scorer → topic → document → score."""


def measure(rounds: int = 1, count: int = 0, data: Path | None = None) -> Table:  # noqa: ARG001  # pairs are scored once
    """Score every pair of each collection once."""
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, "-m", "loadtests.docstrings", made], check=True)
        collections = {"docstrings": _read_collection(Path(made), FILES[1])}
    for folder in sorted(data.iterdir()) if data is not None else ():
        for names in FILES:
            if all((folder / name).is_file() for name in names):
                collections[TITLES.get(folder.name, folder.name)] = _read_collection(folder, names)
    rows, targets = [], {}
    for name, found in collections.items():
        lexical = _score_lexically(found)
        hardest, drawn = _choose_others(found, lexical)
        scores = _score_all(found, lexical, hardest, drawn)
        for kind, others in (("hardest", hardest), ("random", drawn)):
            mine, lead = _compare(found, scores, others, f"{name}, {kind}")
            rows += mine
            targets[f"{name}, {kind}, least lead of the default judge"] = (lead, 0.0)
    return Table(
        suite="judging",
        title="The default judge on labelled text",
        how=f"{'+'.join(judging_embedders())}; pairs of a relevant document and one of BM25's {HARDEST} best others or "
        f"{RANDOM} random ones; share of pairs in the right order, 95 % intervals over topics",
        baseline=MINILM,
        rows=rows,
        targets=targets,
    )


def _read_collection(folder: Path, names: tuple[str, str, str]) -> ImportedCollection:
    return parse_collection(*((folder / name).read_text("utf8") for name in names))


def _score_lexically(found: ImportedCollection) -> dict[str, dict[str, float]]:
    index = LexicalIndex(found.passages)
    return {topic: index.bm25(text) for topic, text in found.topics.items()}


def _choose_others(
    found: ImportedCollection, lexical: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    source, hardest, drawn = random.Random(0), {}, {}
    for topic, scores in lexical.items():
        free = [name for name in found.passages if (topic, name) not in found.labels]
        hardest[topic] = sorted(free, key=lambda name, scores=scores: (-scores[name], name))[:HARDEST]
        drawn[topic] = source.sample(free, RANDOM)
    return hardest, drawn


def _relevant(found: ImportedCollection, topic: str) -> list[str]:
    return [
        name for (one, name), grade in found.labels.items() if one == topic and grade > 0 and name in found.passages
    ]


def _score_all(
    found: ImportedCollection, lexical: Mapping[str, Mapping[str, float]], *others: Mapping[str, list[str]]
) -> Scores:
    wanted = {name for chosen in others for names in chosen.values() for name in names}
    names = sorted(wanted.union(*(_relevant(found, topic) for topic in found.topics)))
    topics, mixed, small = list(found.topics), 0.0, np.empty(0)
    for embedder, share in judging_embedders().items():
        print(f"embedding {len(names)} documents with {embedder}", file=sys.stderr, flush=True)
        vectors, owners = embed_windows([found.passages[name] for name in names], embedder)
        near = vectors @ load_embedder(embedder).embed([found.topics[topic] for topic in topics]).T
        best = np.full((len(names), len(topics)), -1.0)
        np.maximum.at(best, np.array(owners), near)
        mixed, small = mixed + share * best, best if embedder == MINILM else small
    tables = {"similarity": np.asarray(mixed), MINILM: small}
    dense = {
        scorer: {topic: dict(zip(names, table[:, i], strict=True)) for i, topic in enumerate(topics)}
        for scorer, table in tables.items()
    }
    return {**dense, "BM25": lexical}


def _compare(
    found: ImportedCollection, scores: Scores, others: Mapping[str, list[str]], title: str
) -> tuple[list[Row], float]:
    """Rows of each scorer and of its lead over the small embedder; the least lead of `similarity` in its interval."""
    orders = {}
    for scorer, by_topic in scores.items():
        lines = [
            (by_topic[topic][name], grade, topic)
            for topic in found.topics
            if (relevant := _relevant(found, topic))
            for grade, names in ((1, relevant), (0, others[topic]))
            for name in names
        ]
        counts = order_counts(*zip(*lines, strict=True))
        orders[scorer] = np.array([right / whole for right, whole in counts.values()])
    base, rows, least = float(orders[MINILM].mean()), [], 0.0
    for scorer, order in orders.items():
        rows.append(_row(f"{title}, {scorer}", "pairs in order", order, base))
        if scorer != MINILM:
            rows.append(_row(f"{title}, lead of {scorer}", "pairs in order", order - orders[MINILM], base))
            least = rows[-1].low if scorer == "similarity" else least
    return rows, least


def _row(name: str, unit: str, values: np.ndarray, base: float) -> Row:
    low, high = mean_interval(values)
    return Row(name, unit, float(values.mean()), low, high, float(values.mean()) / base, f"{len(values)} topics")
