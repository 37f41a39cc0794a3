"""`POST /v1/judge/rankings` and `/significance`: systems under two label sets, and those that differ."""

from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from fovea_evaluation.metrics import rankings
from fovea_evaluation.metrics.rankings import Missing, find_measure
from fovea_evaluation.metrics.significance import Correction, PairTest, compare_systems, tabulate_scores
from fovea_evaluation.routes.options import MAX_SYSTEMS, Measure, RelevanceLevel, Runs, Seed, read_grades
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.parsing import trec
from services.relevance_judge.schemas import StrictModel
from shared.lazy_module import LazyModule
from shared.serving.http.openapi_routes import problems

stats = LazyModule("scipy.stats")

router = APIRouter(prefix="/v1/judge", tags=["judge"])


class RankingsIn(StrictModel):
    """Runs, and the label sets to rank them under."""

    reference: str = Field(description="Qrels lines.")
    judge: str = Field(description="Qrels lines of the judge, or JSON lines as batches write them.")
    runs: str = Field(description="Run lines of all systems, `qid Q0 docid rank score tag`.")
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    missing: Missing = Field("zero", description="Queries that a run lacks: 0 as `trec_eval -c`, or `skip` them.")
    families: dict[str, str] = Field({}, description="System → family, for example `llm`.")
    favoured: str = Field("llm", description="The family that the judge might prefer, being of its own kind.")


class SystemRow(BaseModel):
    """One system under both label sets; `shift` is how many ranks it gains under the judge, tied ones at their mean."""

    system: str
    family: str | None = None
    reference: float
    judge: float
    shift: float


class FamilyRow(BaseModel):
    """A family of systems: how many ranks, and how much of the measure, it gains under the judge on average."""

    family: str
    systems: int
    shift: float
    difference: float


class RankingsOut(rankings.Comparison):
    """Correlation of the two rankings, with kappa and alpha next to it: they are unrelated, so look at both."""

    kappa: float | None
    alpha: float | None
    systems: list[SystemRow] = Field(description="Best under the reference first.")
    families: list[FamilyRow] = Field([])
    self_preference: float | None = Field(
        None, description="Mean shift of the favoured family less that of all other systems; null without both."
    )


@router.post("/rankings", responses=problems(400, 422))
def rank(body: RankingsIn) -> RankingsOut:
    """Rank systems under two label sets, with trec_eval's semantics."""
    reference, judge = trec.parse_reference(body.reference), read_grades(body.judge, "judge")
    runs = trec.parse_runs(body.runs)
    if unknown := [tag for tag in body.families if tag not in runs]:
        detail = f"There is no run {unknown[0]!r} to be of a family; there are {', '.join(runs) or 'none'}."
        raise InvalidOption(detail, field="families")
    options = body.model_dump(include={"measure", "relevance_level", "missing"})
    rankings.find_measure(body.measure)  # also without systems
    for labels in (reference, judge):
        rankings.check_queries(runs, labels)
    truth, estimate = (rankings.system_scores(runs, labels, **options) for labels in (reference, judge))
    rows = _rows(truth, estimate, body.families)
    agreement = agree(reference, judge)
    return RankingsOut(
        **vars(rankings.compare(truth, estimate)),
        kappa=agreement.kappa,
        alpha=agreement.alpha,
        systems=rows,
        families=_families(rows),
        self_preference=_preference(rows, body.favoured),
    )


def _rows(truth: Mapping[str, float], estimate: Mapping[str, float], families: Mapping[str, str]) -> list[SystemRow]:
    shared = [tag for tag in sorted(truth, key=lambda tag: -truth[tag]) if tag in estimate]
    # The highest is first; equal ones share the mean of their ranks, whatever their order.
    before, after = (stats.rankdata([-scores[tag] for tag in shared]).tolist() for scores in (truth, estimate))
    return [
        SystemRow(system=tag, family=families.get(tag), reference=truth[tag], judge=estimate[tag], shift=old - new)
        for tag, old, new in zip(shared, before, after, strict=True)
    ]


def _families(rows: list[SystemRow]) -> list[FamilyRow]:
    groups: dict[str, list[SystemRow]] = {}
    for row in rows:
        if row.family is not None:
            groups.setdefault(row.family, []).append(row)
    return [
        FamilyRow(
            family=name,
            systems=len(group),
            shift=sum(row.shift for row in group) / len(group),
            difference=sum(row.judge - row.reference for row in group) / len(group),
        )
        for name, group in sorted(groups.items())
    ]


def _preference(rows: list[SystemRow], favoured: str) -> float | None:
    ours = [row.shift for row in rows if row.family == favoured]
    rest = [row.shift for row in rows if row.family != favoured]
    return sum(ours) / len(ours) - sum(rest) / len(rest) if ours and rest else None


class SignificanceIn(StrictModel):
    """Runs and the labels to measure them by."""

    labels: str = Field(description="Qrels lines, or JSON lines as batches write them.")
    runs: Runs
    measure: Measure = "ndcg_cut_10"
    relevance_level: RelevanceLevel = 1
    baseline: str | None = Field(None, description="Compare with this system only; left out, all pairs.")
    correction: Correction = Field("holm", description="For many comparisons; `max-t` permutes all systems together.")
    level: float = Field(0.05, gt=0, lt=0.5, description="Corrected p at which a difference counts.")
    draws: int = Field(5000, ge=100, le=20_000, description="Permutations, and bootstrap samples.")
    seed: Seed = 0


class PairOut(PairTest):
    """Two systems over the same queries."""

    is_significant: bool
    statement: str


class SignificanceOut(BaseModel):
    """Systems, best first, and their comparisons."""

    measure: str
    queries: int
    systems: dict[str, float]
    comparisons: list[PairOut]


@router.post("/significance", responses=problems(400, 422))
def compare_runs(body: SignificanceIn) -> SignificanceOut:
    """Test the differences between systems over the same queries; one that a run lacks counts 0, as `trec_eval -c`."""
    labels, runs = read_grades(body.labels, "labels"), trec.parse_runs(body.runs)
    find_measure(body.measure)
    if not 2 <= len(runs) <= MAX_SYSTEMS:
        raise InvalidOption(f"There are {len(runs)} systems; 2 to {MAX_SYSTEMS} can be compared.", field="runs")
    if body.baseline is not None and body.baseline not in runs:
        raise InvalidOption(f"There is no run {body.baseline!r}; there are {', '.join(runs)}.", field="baseline")
    names, queries, scores = tabulate_scores(runs, labels, measure=body.measure, relevance_level=body.relevance_level)
    if len(queries) < 2:
        raise InvalidOption(f"The labels hold {len(queries)} queries; 2 are the least.", field="labels")
    how = body.model_dump(include={"baseline", "correction", "draws", "seed"})
    tests = compare_systems(names, scores, confidence=1 - body.level, **how)
    means = {name: float(row.mean()) for name, row in zip(names, scores, strict=True)}
    return SignificanceOut(
        measure=body.measure,
        queries=len(queries),
        systems=dict(sorted(means.items(), key=lambda one: -one[1])),
        comparisons=[_describe(test, body, len(tests), len(queries)) for test in tests],
    )


def _describe(test: PairTest, body: SignificanceIn, tests: int, queries: int) -> PairOut:
    is_significant = test.p_corrected <= body.level
    low, high = test.interval if test.difference >= 0 else (-test.interval[1], -test.interval[0])  # of the better one
    evidence = (
        f"{abs(test.difference):.4f} {body.measure} over {queries} queries ({100 - 100 * body.level:g}% interval "
        f"{low:+.4f} to {high:+.4f}; permutation p {test.p:.4g}"
        + (f", {body.correction} over {tests} comparisons {test.p_corrected:.4g})" if tests > 1 else ")")
    )
    better, worse = (test.first, test.second) if test.difference >= 0 else (test.second, test.first)
    statement = f"It is not shown that {better} and {worse} differ: {evidence}."
    if is_significant:
        statement = f"{better} is better than {worse} by {evidence}."
    return PairOut(**vars(test), is_significant=is_significant, statement=statement)
