"""`POST /v1/judge/agreement`: compare a judge's labels with reference labels. Stores nothing."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.relevance_judge.batches import pair_selection
from services.relevance_judge.metrics.agreement import Agreement, Qrels, agree
from services.relevance_judge.metrics.bias import BiasBlock, invalid_share, measure_bias
from services.relevance_judge.metrics.uncertainty import kappa_interval
from services.relevance_judge.parsing import trec
from services.relevance_judge.parsing.label_formats import parse_labels
from services.relevance_judge.schemas import StrictModel
from shared.serving.http.openapi_routes import problems

router = APIRouter()

MAX_DISAGREEMENTS = 200


class AgreementIn(StrictModel):
    """Two label sets, and perhaps the texts behind them."""

    reference: str = Field(description="Qrels lines, `qid 0 docid grade`.")
    judge: str = Field(description="Qrels lines of the judge, or JSON lines as batches write them.")
    topics: str = Field("", description="With `passages`, reports bias by length and overlap. `qid<TAB>text` lines.")
    passages: str = Field("", description="JSON lines with `id` and `text`.")
    draws: int = Field(2000, ge=1, le=10_000, description="Bootstrap samples of queries.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the bootstrap.")


class Disagreement(BaseModel):
    """A pair on which the two differ."""

    qid: str
    docid: str
    reference: int
    judge: int


class AgreementOut(Agreement):
    """How far the judge agrees with the reference; null is undefined."""

    kappa_interval: tuple[float, float] | None = Field(description="95 %, from a bootstrap over queries.")
    invalid: int = Field(description="Pairs that the judge's lines call invalid.")
    uncalibrated: int = Field(description="Pairs with a signal and no grade, as no calibration was given.")
    invalid_by_grade: list[float | None] = Field(description="Their share per reference grade.")
    bias_by_text: BiasBlock | None = Field(description="Where the texts were given.")
    disagreements: list[Disagreement] = Field(description=f"The widest first, at most {MAX_DISAGREEMENTS}.")


@router.post("/agreement", responses=problems(400, 422))
def agreement(body: AgreementIn) -> AgreementOut:
    """Compare a judge's labels with reference labels."""
    reference, judge = trec.parse_reference(body.reference), parse_labels(body.judge, "judge")
    texts = pair_selection.parse_collection(body.topics, body.passages)
    return AgreementOut(
        **vars(agree(reference, judge.labels)),
        kappa_interval=kappa_interval(reference, judge.labels, draws=body.draws, seed=body.seed),
        invalid=len(judge.invalid),
        uncalibrated=judge.uncalibrated,
        invalid_by_grade=invalid_share(reference, judge.invalid),
        bias_by_text=measure_bias(reference, judge.labels, *texts) if all(texts) else None,
        disagreements=_widest(reference, judge.labels),
    )


def _widest(reference: Qrels, judge: Qrels) -> list[Disagreement]:
    ours, theirs = ({p: min(max(grade, 0), 3) for p, grade in side.items()} for side in (judge, reference))
    gaps = {pair: gap for pair, grade in theirs.items() if pair in ours and (gap := abs(grade - ours[pair]))}
    return [
        Disagreement(qid=qid, docid=docid, reference=reference[qid, docid], judge=judge[qid, docid])
        for qid, docid in sorted(gaps, key=gaps.__getitem__, reverse=True)[:MAX_DISAGREEMENTS]
    ]
