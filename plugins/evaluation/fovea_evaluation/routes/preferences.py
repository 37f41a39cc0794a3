"""`POST /v1/judge/preferences`: a pairwise judge, asked in both orders, and its order and length bias."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from fovea_evaluation.comparisons import PassagePair, compare_pairs, sample_comparisons
from fovea_evaluation.metrics.preferences import OrderBias, measure_order_bias
from services.relevance_judge.batches import pair_selection
from services.relevance_judge.parsing import trec
from services.relevance_judge.routes.backends import get_judge
from services.relevance_judge.schemas import MAX_TEXT_CHARS, StrictModel
from shared.registry import CallContext
from shared.serving.http.openapi_routes import problems

router = APIRouter(prefix="/v1/judge", tags=["judge"])


class ComparisonForm(StrictModel):
    """Two passages for one query."""

    query: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    first: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    second: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    label: int | None = Field(None, ge=-1, le=1, description="1 if people prefer the first, −1 the second, 0 neither.")


class PreferencesIn(StrictModel):
    """Comparisons; or a labelled collection, of which some are drawn: half of equal grade, half of unequal."""

    comparisons: list[ComparisonForm] = Field([], max_length=500)
    topics: str = Field("", description="Lines `qid<TAB>text`, or JSON lines.")
    passages: str = Field("", description="JSON lines with id and text.")
    reference: str = Field("", description="Qrels lines by people.")
    sample: int = Field(40, ge=2, le=500, description="Comparisons to draw.")
    template: str = Field("preference", description="Of the kind `preference`.")
    llm: str | None = Field(None, description="Language model at the endpoint; left out, its default.")
    passage_chars: int = Field(3000, ge=200, le=MAX_TEXT_CHARS, description="Longer passages are cut at the end.")
    seed: int = Field(0, ge=0, lt=2**31)


class PreferenceOut(BaseModel):
    """The judge's preference in one comparison."""

    ids: tuple[str, str, str] | None = Field(description="Query and both passages, where they were drawn.")
    preferred: int = Field(description="1 the first, −1 the second, 0 where the order decides.")
    forward: float = Field(description="Probability of the first passage when it is shown first.")
    backward: float = Field(description="The same when it is shown second.")
    label: int | None


class PreferencesOut(OrderBias):
    """Preferences, and the judge's biases."""

    results: list[PreferenceOut]


@router.post("/preferences", responses=problems(400, 422, 503))
def compare_passages(request: Request, body: PreferencesIn) -> PreferencesOut:
    """Ask which of two passages is better, in both orders, and measure what order and length do."""
    run: CallContext = request.scope["fovea.run"]
    pairs = _pairs(body)
    if not pairs:
        raise InvalidOption("There is nothing to compare.", hint="Give comparisons, or labels of two passages a topic.")
    options = body.model_dump(include={"template", "llm", "seed", "passage_chars"})
    preferences = compare_pairs(get_judge(request, None).client, pairs, run, **options)
    return PreferencesOut(
        **vars(measure_order_bias(preferences)),
        results=[
            PreferenceOut(
                ids=pair.names,
                preferred=(1 if one.forward > 0.5 else -1) if one.is_consistent else 0,
                forward=one.forward,
                backward=one.backward,
                label=one.label,
            )
            for pair, one in zip(pairs, preferences, strict=True)
        ],
    )


def _pairs(body: PreferencesIn) -> list[PassagePair]:
    if body.comparisons:
        return [PassagePair(one.query, one.first, one.second, one.label) for one in body.comparisons]
    topics, passages = pair_selection.parse_collection(body.topics, body.passages)
    labels = trec.parse_qrels(body.reference, "reference")
    return sample_comparisons(topics, passages, labels, most=body.sample, seed=body.seed)
