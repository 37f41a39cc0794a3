"""How a request attends to a long context, and what came of it: methods, budgets, bytes, comparisons and citations."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import Tokens

CacheDtype = Literal["auto", "q8", "q4", "r4", "r3"]


class LongctxOptions(BaseModel, extra="allow"):
    """Ours: how attention is computed for this request, and how much memory it may hold.

    A method's knobs are given in `knobs` or next to the other fields. Models with attention of their own have knobs of
    their own, which their cards name.
    """

    method: str = Field("dense", description="The attention method; `/v1/longctx/methods` lists them.")
    knobs: dict[str, Any] = Field(default_factory=dict, description="The method's knobs; what is left out is default.")
    prefill: str | dict[str, Any] | None = Field(None, description="Another method that reads the prompt's full heads.")
    decode: str | dict[str, Any] | None = Field(None, description="Another method by which full heads decode.")
    kv_bytes: int | None = Field(None, ge=1, description="Budget: most bytes of keys and values; knobs are fitted.")
    kv_ratio: float | None = Field(None, gt=0, le=1, description="Budget as a share of what dense would hold.")
    on_miss: Literal["nearest", "error", "dense"] = Field(
        "nearest",
        description="Fallback where a method can't keep within the budget: the same with the fewest bytes that its "
        "pages allow, an error, or dense attention.",
    )
    kv_cache_dtype: CacheDtype | None = Field(
        None,
        description="Older keys and values in 8, 4 or 3 bits (r: rotated first), or (auto) in the model's own type; "
        "null is the server's.",
    )
    plan: str | dict[str, Any] | None = Field(None, description="Head plan: a name known here, or head-plan/1 itself.")
    logprobs_from: int | None = Field(
        None,
        ge=0,
        description="With echo: log-probabilities before this token are null, so that a cached prefix serves.",
    )
    boundaries: Tokens[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=65536, description="Chunk borders for methods that would predict them, 0 and the end included."
    )
    priority: Literal["interactive", "batch"] = Field("interactive", description="Batch requests wait for the others.")


class LongctxUsage(BaseModel):
    """Ours: which attention served, and what it held."""

    method: str
    knobs: dict[str, Any]
    kv_bytes: int = Field(description="Bytes of the pages held at the end.")
    kv_bytes_dense: int = Field(description="Bytes that dense attention would hold.")
    kv_ratio: float
    kv_cache_dtype: CacheDtype = Field("auto", description="Type of older keys and values.")
    prefill_density: float = Field(description="Share of causal blocks that were read, mean over layers.")
    full_steps: int = Field(description="Decode steps that looked at everything, where the method skips.")
    backend: str = Field(description="Back end of the kernels.")
    cached_tokens: int = Field(description="Tokens of the prompt that came from the prefix cache.")
    preempted: int = Field(description="How often an answer lost its pages to others and was read again.")
    fallback: str | None = Field(description="Why dense served instead of the method asked for.")
    budget_missed: str | None = Field(None, description="How the budget was missed, which pages of 16 could not meet.")
    context_left: int | None = Field(None, description="Tokens that still fit behind one prompt and its one answer.")


class ComparedAnswer(BaseModel):
    """Ours: one of several methods that answered the same request, compared with the first of them."""

    index: int = Field(description="Its choice.")
    longctx: LongctxUsage = Field(description="The method, and the bytes that it held.")
    kl: list[float] | None = Field(
        None, description="KL(first ‖ this) before each token of the first answer, in nats; null for the first itself."
    )
    mean_kl: float | None = None
    agreement: float | None = Field(None, description="Share of these tokens for which both find the same likeliest.")


class Citation(BaseModel):
    """Ours: a block of the text that the model fetched while it answered."""

    block: int = Field(description="Its number in what was read, from 0.")
    start: int = Field(description="Its first token.")
    end: int = Field(description="The token behind its last.")
    char_start: int | None = Field(description="Where it begins in its text, in characters; null for token ids.")
    char_end: int | None = Field(description="Where it ends.")
    document: str | None = Field(description="The document that it is of; null for the prompt and the answer.")
    text: str = Field(description="What it says.")
    weight: float = Field(description="Share of all votes (layers behind the first, heads, tokens of the answer).")
    hits: int = Field(description="Its votes.")


class CitedToken(BaseModel):
    """Ours: a token of the answer and the blocks that were fetched for it, most votes first."""

    token: str
    blocks: list[int]


class Surprise(BaseModel):
    """Ours: how much of what was read was new to the memory; its error before it learned, mean over layers."""

    tokens: int
    mean: float
    max: float


class LongctxAnswer(BaseModel):
    """Ours: what a model with attention of its own has to tell next to its answer."""

    citations: list[Citation] = Field([], description="Blocks that were fetched for the answer, most votes first.")
    cited_tokens: list[CitedToken] = Field([], description="The same per token of the first answer.")
    blocks_total: int | None = Field(None, description="Blocks stored at the end.")
    blocks_loaded: int | None = Field(None, description="Different blocks that were fetched meanwhile.")
    bytes_moved: int | None = Field(None, description="Bytes fetched from where blocks wait, with offload.")
    state_version: int | None = Field(None, description="Version of the session, or of the document.")
    session_id: str | None = None
    state_bytes: int | None = Field(None, description="Bytes of what is remembered now.")
    surprise: Surprise | None = Field(None, description="Of the tokens of this request.")
