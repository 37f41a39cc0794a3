"""Fields that several bodies share."""

from typing import Annotated

from pydantic import Field

MAX_SYSTEMS = 64
"""Most runs whose differences are tested."""

Runs = Annotated[str, Field(description="Run lines of all systems.")]
Measure = Annotated[str, Field(description="ndcg, ndcg_cut_k, map, P_k, recip_rank or recall_k.")]
RelevanceLevel = Annotated[int, Field(ge=0, le=3, description="Lowest grade that counts as relevant.")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
