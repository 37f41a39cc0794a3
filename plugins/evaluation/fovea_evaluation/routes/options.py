"""Fields that several bodies share, and the reading of a judge's grades."""

from typing import Annotated

from pydantic import Field

from fovea.errors import InvalidOption
from services.relevance_judge.parsing.label_formats import parse_labels

MAX_SYSTEMS = 64
"""Most runs whose differences are tested."""

Runs = Annotated[str, Field(description="Run lines of all systems.")]
Measure = Annotated[str, Field(description="ndcg, ndcg_cut_k, map, P_k, recip_rank or recall_k.")]
RelevanceLevel = Annotated[int, Field(ge=0, le=3, description="Lowest grade that counts as relevant.")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def read_grades(text: str, source: str) -> dict[tuple[str, str], int]:
    """Read the grades of a judge, {(qid, docid): grade}.

    Raises Malformed: as `parse_labels`; InvalidOption: it has signals only, for want of a calibration.
    """
    found = parse_labels(text, source)
    if found.uncalibrated and not found.labels:
        detail = f"{source} holds signals ({found.uncalibrated:,} pairs) and no grade."
        raise InvalidOption(detail, hint="Fit cuts of the judge: `fovea judge calibrate`.", field=source)
    return found.labels
