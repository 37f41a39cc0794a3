"""`POST /v1/judge/collection`: a public test collection as the text that other routes take. Stores nothing."""

import json

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea_evaluation.imported_collection import CRANFIELD_GRADES, ImportedCollection, parse_collection
from services.relevance_judge.metrics.baselines import LexicalIndex
from services.relevance_judge.parsing import trec
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter(prefix="/v1/judge", tags=["judge"])


class ImportIn(StrictModel):
    """A public test collection in its own form: that of Cranfield, NPL, LISA, TIME, TREC or BEIR."""

    documents: str = Field(description="Records, such as `.I id`, `.T` title, `.W` text.")
    topics: str = Field(description="Records, such as `.I id`, `.W` text.")
    relevance: str = Field(
        description="Lines `qid docid code`, `qid 0 docid grade` or `qid docid 0 0`, or lists of documents."
    )
    grades: dict[int, int] = Field(
        dict(CRANFIELD_GRADES), description="Code → grade; lines of other codes are left out and counted in the notes."
    )
    depth: int = Field(100, ge=1, le=1000, description="Of the BM25 run.")
    others: int = Field(
        0, ge=0, le=100, description="Per topic, label so many unjudged passages 0: those that BM25 ranks highest."
    )


class ImportOut(BaseModel):
    """The collection in our own form, and what had to be decided on the way."""

    topics: str = Field(description="Lines `qid<TAB>query`.")
    passages: str = Field(description="JSON lines with `id` and `text`.")
    qrels: str
    run: str = Field(description="BM25 over all passages, TREC lines.")
    notes: list[str]


@router.post("/collection", responses=problems(400, 422))
def import_collection(body: ImportIn) -> ImportOut:
    """Turn a public test collection into topics, passages, qrels and a BM25 run."""
    grades = body.grades if "grades" in body.model_fields_set else None  # only Cranfield's codes fall with relevance
    found = parse_collection(body.documents, body.topics, body.relevance, grades=grades)
    index = LexicalIndex(found.passages)
    ranked = {qid: _rank(index, text) for qid, text in found.topics.items()}
    notes = [*found.notes, *_add_others(found, ranked, body.others)]
    return ImportOut(
        topics="".join(f"{qid}\t{text}\n" for qid, text in found.topics.items()),
        passages="".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in found.passages.items()),
        qrels=trec.format_qrels(found.labels),
        run=trec.format_run({qid: row[: body.depth] for qid, row in ranked.items()}, "bm25"),
        notes=notes,
    )


def _rank(index: LexicalIndex, query: str) -> list[tuple[str, float]]:
    scores = index.bm25(query)
    return sorted(((name, score) for name, score in scores.items() if score > 0), key=lambda one: (-one[1], one[0]))


def _add_others(found: ImportedCollection, ranked: dict[str, list[tuple[str, float]]], count: int) -> list[str]:
    """Label the hardest unjudged passages of each topic 0, with a note."""
    judged = {qid for qid, _ in found.labels}
    added = 0
    for qid in [qid for qid in ranked if qid in judged and count]:
        others = [docid for docid, _ in ranked[qid] if (qid, docid) not in found.labels][:count]
        found.labels.update({(qid, docid): 0 for docid in others})
        added += len(others)
    return [f"{added} unjudged passages that BM25 ranks highest count as 0; nobody looked at them."] if added else []
