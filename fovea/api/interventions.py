"""Interventions and captures on the wire: what a request changes inside the model, what it reads, and what comes back.

Sites are named as in `shared.lm.activation_names`: `resid_post.14`, `z.9`, `final`; TransformerLens' names work, too
(`shared.lm.hook_names`). Positions count tokens of the whole
sequence, the prompt's first is 0; negative ones count back from the prompt's end, so −1 is its last token.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

MAX_INTERVENTIONS = 32
"""Interventions of one request."""

MAX_CAPTURES = 32
"""Captures of one request."""

MAX_SCALE = 1000.0
"""Largest factor of a vector; its entries times the strength may be 10,000 (`services.llm_longctx.engine.taps`)."""

MAX_STRENGTH = 10.0
"""Largest strength of a stored vector, relative to an activation's length."""

MAX_FACTOR = 100.0
"""Largest factor of a scaled activation."""

Position = Annotated[int, Field(ge=-(2**20), lt=2**20)]
Positions = Annotated[list[Position], Field(min_length=1, max_length=4096)]
Where = Literal["all", "prompt", "decode"] | Positions
"""`prompt`: its tokens; `decode`: tokens of the answer as they are fed back; `all`: both; or positions."""

Layer = Annotated[int, Field(ge=0, lt=2**16)]
Layers = Annotated[list[Layer], Field(min_length=1, max_length=256)]
Heads = Annotated[list[Annotated[int, Field(ge=0, lt=2**16)]], Field(min_length=1, max_length=1024)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Site = Annotated[str, Field(min_length=1, max_length=64)]
CaptureId = Annotated[str, Field(max_length=64)]
Vector = Annotated[list[Finite], Field(min_length=1, max_length=65536)]
Row = Vector | Annotated[list[Vector], Field(min_length=1, max_length=1024)]
"""Of one position: as wide as the site, or at sites with heads one list per chosen head."""


class _Strict(BaseModel, extra="forbid"):
    """A misspelt field would change the answer silently."""


class AddIntervention(_Strict):
    """Add a vector to an activation: `scale` times it, or a stored one at a `strength`."""

    type: Literal["add"] = "add"
    site: Site | None = Field(
        None, description="Where. Left out, a stored vector's `layer`; `resid_post` alone is each of its layers."
    )
    vector: Annotated[str, Field(max_length=128)] | Vector = Field(
        description="A steering vector's name, with `@version` or its newest; or the numbers."
    )
    scale: float | None = Field(
        None, ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False, description="Factor; left out, 1 for numbers."
    )
    strength: float | None = Field(
        None,
        ge=-MAX_STRENGTH,
        le=MAX_STRENGTH,
        allow_inf_nan=False,
        description="Length of a stored vector relative to an activation's; 0.2 is a fifth. Its default is "
        "the vector's own `strength`; a minus turns it round.",
    )
    heads: Heads | None = Field(None, description="At sites with heads: which; all if left out.")
    positions: Where = Field("all", description="Which tokens.")


class SetIntervention(_Strict, populate_by_name=True, serialize_by_alias=True):
    """Replace an activation (activation patching); exactly one of `vector`, `values` and `from` says by what."""

    type: Literal["set"]
    site: Site
    vector: Vector | None = Field(None, description="The same numbers at all positions.")
    values: Annotated[list[Row], Field(min_length=1, max_length=4096)] | None = Field(
        None, description="A row per position, in the order of `positions`, which is a list then."
    )
    source: CaptureId | Annotated[list[CaptureId], Field(min_length=1, max_length=100)] | None = Field(
        None, alias="from", description="Id of a capture with `keep`, which has this site; several with `mean`."
    )
    from_positions: Positions | None = Field(
        None, description="With `from`: its positions, one for each of `positions`; left out, the same ones."
    )
    mean: bool = Field(False, description="With `from`: the mean of all rows, at all positions (mean ablation).")
    heads: Heads | None = Field(None, description="At sites with heads: which; all if left out.")
    positions: Where = Field("all", description="Which tokens; `all` with `from`: those that were captured.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        given = [name for name in ("vector", "values", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            named = ", ".join(given).replace("source", "from") or "none of them"
            raise ValueError(f"set takes exactly one of vector, values and from, not {named}")
        if self.source is None and (self.mean or self.from_positions):
            raise ValueError("mean and from_positions need from")
        if isinstance(self.source, list) and not self.mean:
            raise ValueError("several captures need mean")
        listed = [self.positions] if self.values or (self.from_positions and not self.mean) else []
        rows = self.values or self.from_positions or ()
        if any(isinstance(one, str) or len(one) != len(rows) for one in listed):
            raise ValueError(f"{len(rows)} rows need a list of as many positions")
        return self


class ScaleIntervention(_Strict):
    """Multiply an activation by a factor; 0 on `z.<layer>` masks heads (zero ablation)."""

    type: Literal["scale"]
    site: Site
    factor: float = Field(ge=-MAX_FACTOR, le=MAX_FACTOR, allow_inf_nan=False)
    heads: Heads | None = Field(None, description="At sites with heads: which; all if left out.")
    positions: Where = Field("all", description="Which tokens.")


class UniformIntervention(_Strict):
    """Make the attention of heads uniform over all visible keys."""

    type: Literal["uniform"]
    layer: Layer
    heads: Heads | None = Field(None, description="Which; all if left out.")
    positions: Where = Field("all", description="Which tokens' queries.")


class AttendIntervention(_Strict):
    """Override where heads look: their attention becomes `weights` on the tokens `keys`, zero elsewhere."""

    type: Literal["attend"]
    layer: Layer
    heads: Heads
    keys: Positions = Field(description="Tokens that are looked at.")
    weights: Annotated[list[Finite], Field(max_length=4096)] | None = Field(
        None, description="One per key, used as given; left out, equal ones that sum to 1."
    )
    positions: Where = Field("all", description="Which tokens' queries; keys behind a query count nothing.")


def _kind(given: Any) -> Any:
    return given.get("type", "add") if isinstance(given, dict) else getattr(given, "type", None)


Intervention = Annotated[
    Annotated[AddIntervention, Tag("add")]
    | Annotated[SetIntervention, Tag("set")]
    | Annotated[ScaleIntervention, Tag("scale")]
    | Annotated[UniformIntervention, Tag("uniform")]
    | Annotated[AttendIntervention, Tag("attend")],
    Discriminator(_kind),
]
"""One change; without `type` it is `add`."""


class CaptureActivation(_Strict):
    """Read a named activation."""

    type: Literal["activation"]
    site: Site
    positions: Where = Field("decode", description="Which tokens.")
    keep: bool = Field(False, description="Store it for a day; its `id` can be the `from` of a `set`.")


class CaptureAttention(_Strict):
    """Read attention rows: how much each head of a token looks at the tokens before it."""

    type: Literal["attention"]
    layers: Layers | None = Field(None, description="Which; all if left out.")
    heads: Heads | None = Field(None, description="Which; all if left out.")
    positions: Where = Field("decode", description="Which tokens' queries.")


class CaptureLogitLens(_Strict):
    """Read what each layer would predict next: the final norm and output matrix on its residual stream."""

    type: Literal["logit_lens"]
    layers: Layers | None = Field(None, description="Which; all if left out.")
    top: int = Field(5, ge=1, le=20, description="So many likeliest tokens.")
    positions: Where = Field("decode", description="Which tokens.")


Capture = Annotated[CaptureActivation | CaptureAttention | CaptureLogitLens, Field(discriminator="type")]
"""One thing to read."""


class LensToken(BaseModel):
    """A likely next token in the eyes of a layer."""

    token: str
    id: int
    logprob: float


class Captured(BaseModel):
    """Values read by one capture, at one or more tokens.

    `values` has one entry per position, in their order:

    * `activation`: the activation, [width], or [heads, width] at sites with heads.
    * `attention`: [layers, heads, keys], keys being the tokens 0 … position. 0 stands for an evicted one, too.

    `lens` has the same for `logit_lens`: [layers, top]. In a stream each piece has the positions that are new. What
    outgrows `inline` numbers has neither: it is in the file at `url`, whose arrays are `<capture>.<name>`.
    """

    capture: int = Field(description="Index of the capture in the request.")
    type: Literal["activation", "attention", "logit_lens"]
    site: str | None = Field(None, description="Of an activation.")
    layers: list[int] | None = Field(None, description="Of attention and lens.")
    heads: list[int] | None = Field(None, description="Of attention.")
    positions: list[int] = Field(description="Which tokens.")
    tokens: list[str] = Field(description="Their text.")
    values: list[Any] | None = None
    lens: list[list[list[LensToken]]] | None = None
    url: str | None = Field(None, description="Where the NPZ file is, for what is too large to be inline.")
    id: str | None = Field(None, description="Id of that file, and of a capture with `keep`: the `from` of a `set`.")
