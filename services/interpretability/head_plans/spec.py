"""Spec of the head-plans experiment: the kind of plan, its name and share, and the options of each kind."""

from typing import Annotated, Any, Literal

from pydantic import Field

from services.interpretability.core.experiment import Spec
from shared.lm.head_plan_store import PLAN_NAME


class HeadPlansSpec(Spec):
    """Kind of plan and its options; options of other kinds change nothing."""

    kind: Literal["razor", "duo", "act", "statistic", "centres", "retrieval", "table"] = Field(
        "razor",
        description="Razor's scores, Duo's gates, ACT's heads, Duo's statistic of mean queries and keys, "
        "TriAttention's query centres, a retrieval report, or a published gate table.",
    )
    name: str | None = Field(
        None, pattern=PLAN_NAME, description="Store the plan for llm-longctx as `longctx.plan` NAME; left out, don't."
    )
    share: float | None = Field(
        None, ge=0, le=1, description="Share of full key/value heads; left out, half, or razor's own rule."
    )

    period: int | None = Field(
        None, ge=2, le=10_000, description="razor: random tokens; left out, 2,500 or as many as fit the window."
    )
    repeats: int = Field(4, ge=2, le=16, description="razor: how often they come.")
    echo: float = Field(0.01, ge=0, le=1, description="razor: share of key/value heads that are full by echo.")
    induction: float = Field(0.14, ge=0, le=1, description="razor: share that is full by induction.")

    steps: int = Field(200, ge=1, le=10_000, description="duo: texts that gates are trained on, one a step.")
    lengths: list[Annotated[int, Field(ge=1)]] = Field(
        [256, 416, 560, 704, 864, 1024],
        min_length=1,
        max_length=60,
        description="duo: tokens of the texts; statistic: the longest is read; centres: as long as the longest.",
    )
    tokens: int = Field(4096, ge=16, le=1 << 20, description="centres: tokens that are read, several texts together.")
    passkeys: int = Field(4, ge=1, le=10, description="duo: passkeys hidden in a text.")
    words: int = Field(8, ge=1, le=64, description="duo: words of a passkey.")
    sink: int = Field(128, ge=0, le=65536, description="duo: first tokens that a streaming head sees in training.")
    recent: int = Field(256, ge=1, le=65536, description="duo: last tokens that it sees in training.")
    rate: float = Field(0.02, gt=0, le=1, description="duo: peak learning rate.")
    reg: float = Field(0.05, ge=0, le=10, description="duo: weight of the gates' mean in the loss.")

    samples: int = Field(50, ge=2, le=2000, description="act: questions by which heads are judged.")
    check: int = Field(50, ge=2, le=2000, description="act: other questions, for the chosen heads together.")
    facts: int = Field(10, ge=4, le=20, description="act: facts that a question chooses among.")
    candidates: int = Field(20, ge=1, le=4096, description="act: heads that are tried, those with most sinks.")
    skip: int = Field(2, ge=0, le=200, description="act: first layers that are left alone.")
    beta: float = Field(0.4, ge=0, le=1, description="act: share of their attention that sinks keep.")
    threshold: float = Field(0.1, gt=0, le=1, description="act: mean attention above which a token is a sink.")
    relative_threshold: float | None = Field(None, gt=0, description="act: alpha, for a threshold of alpha / tokens.")
    excuse: Literal["first", "zero"] = Field("first", description="act: the sink that is let off.")
    min_rows: int = Field(0, ge=0, le=1 << 20, description="act: columns that fewer queries see are no sinks.")

    report: str | dict[str, Any] | None = Field(
        None, description="retrieval: a retrieval-report/1, or the digest of a stored one."
    )
    table: str | None = Field(
        None, max_length=200_000, description="table: tab-separated gates, a line per layer, a column per head."
    )
