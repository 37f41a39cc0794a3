"""`POST /v1/judge/trust`: a judge against lexical and embedding baselines on a labelled sample. Stores nothing."""

from collections.abc import Mapping
from itertools import groupby

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from fovea.errors import InvalidOption, NotFound, NotReady
from services.relevance_judge.batches import pair_selection
from services.relevance_judge.embeddings import embed_windows, load_embedder
from services.relevance_judge.metrics.baselines import LexicalIndex, overlap
from services.relevance_judge.metrics.trust import TrustReport, build_trust_report
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_signals
from services.relevance_judge.schemas import StrictModel
from shared.registry import CallContext
from shared.serving.http.openapi_routes import problems

router = APIRouter()

Signals = dict[tuple[str, str], float]

TEXTS_AT_A_TIME = 64


class TrustIn(StrictModel):
    """A labelled sample, what the judge says of it, and the texts."""

    reference: str = Field(description="Qrels lines by people.")
    judge: str = Field(description="JSON lines of a batch, run lines (their scores) or qrels (their grades).")
    topics: str = Field(description="Lines `qid<TAB>text`, or JSON lines.")
    passages: str = Field(description="JSON lines with id and text; all of a collection, for BM25's frequencies.")
    name: str = Field("judge", min_length=1, max_length=60, description="Name of the judge in the report.")
    embedding: bool = Field(True, description="Compare with the sentence embedder too; takes about 20 ms a passage.")
    draws: int = Field(2000, ge=100, le=10_000, description="Bootstrap samples of queries.")
    seed: int = Field(0, ge=0, lt=2**32)


class TrustOut(TrustReport):
    """Whether the judge is worth believing on texts like these."""

    missing: int = Field(description="Labelled pairs that the judge or the texts lack; they are left out.")
    notes: list[str] = Field([])


@router.post("/trust", responses=problems(400, 422, 503))
def report_trust(request: Request, body: TrustIn) -> TrustOut:
    """Compare a judge with baselines that cost nothing, before a batch of it is believed."""
    run: CallContext = request.scope["fovea.run"]
    labels, judge = trec.parse_reference(body.reference), parse_signals(body.judge, "judge")
    topics, passages = pair_selection.parse_collection(body.topics, body.passages)
    usable = [pair for pair in labels if pair in judge.signals and pair[0] in topics and pair[1] in passages]
    known = {pair: labels[pair] for pair in usable}
    if not known:
        detail = "No labelled pair has both a signal of the judge and its texts."
        raise InvalidOption(detail, hint="Compare the ids of the four files.", field="judge")
    baselines, notes = _lexical_baselines(list(known), topics, passages), []
    if body.embedding:
        try:
            baselines["embedding"] = _embedding_baseline(list(known), topics, passages, run)
        except (NotFound, NotReady) as error:
            notes.append(f"The embedding baseline is missing: {error.detail}")
    grades = judge.grades if set(known) <= set(judge.grades) else None
    samples = {"draws": body.draws, "seed": body.seed}
    report = build_trust_report(body.name, judge.signals, known, baselines, grades=grades, **samples)
    return TrustOut(**vars(report), missing=len(labels) - len(known), notes=notes)


def _lexical_baselines(
    pairs: list[tuple[str, str]], topics: Mapping[str, str], passages: Mapping[str, str]
) -> dict[str, Signals]:
    index, bm25 = LexicalIndex(passages), Signals()
    for qid, own in groupby(sorted(pairs), lambda pair: pair[0]):  # a query at a time: it has a score for every passage
        scores = index.bm25(topics[qid])
        bm25 |= {pair: scores[pair[1]] for pair in own}
    return {"overlap": {(q, d): overlap(topics[q], {d: passages[d]})[d] for q, d in pairs}, "bm25": bm25}


def _embedding_baseline(
    pairs: list[tuple[str, str]], topics: Mapping[str, str], passages: Mapping[str, str], run: CallContext
) -> Signals:
    """Cosine of each pair, a passage by its window nearest to the query, as the similarity judge has it."""
    docids = list(dict.fromkeys(docid for _, docid in pairs))
    windows: dict[str, list[np.ndarray]] = {}
    for begin in range(0, len(docids), TEXTS_AT_A_TIME):
        run.check()
        run.progress(begin / len(docids), f"{begin} of {len(docids)} passages embedded")
        part = docids[begin : begin + TEXTS_AT_A_TIME]
        for vector, owner in zip(*embed_windows([passages[docid] for docid in part]), strict=True):
            windows.setdefault(part[owner], []).append(vector)
    qids = list(dict.fromkeys(qid for qid, _ in pairs))
    queries = dict(zip(qids, load_embedder().embed([topics[qid] for qid in qids]), strict=True))
    return {(q, d): max(float(queries[q] @ vector) for vector in windows[d]) for q, d in pairs}
