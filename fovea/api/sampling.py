"""How an answer is drawn, as every route of OpenAI's form takes it: OpenAI's fields, vLLM's, and vLLM's older names."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from fovea.api.bounded_lists import Tokens
from fovea.api.structured import StructuredOutputs

MAX_STOPS: Final = 16
MAX_BAD_WORDS: Final = 1024

Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopTexts = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
            ]
        }
    ),
]
"""One text or several, always a list in Python."""

GUIDED: Final = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "guided_whitespace_pattern": "whitespace_pattern",
}
"""Older names of vLLM → fields of `structured_outputs`."""


class NullIsAbsent(BaseModel, extra="allow"):
    """A request in which null means that a field is left out: clients send null for what they leave to the server."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class SamplingOptions(NullIsAbsent):
    """How an answer is drawn and where it ends; the same for chats, completions and responses."""

    temperature: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="0 always takes the likeliest token. Left out, this and the others: see the Card.",
    )
    top_p: float | None = Field(None, ge=0, le=1, description="Draw from the likeliest tokens that hold this much.")
    top_k: int | None = Field(None, ge=-1, description="Draw from so many likeliest tokens; 0 or -1 means all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Least probability, as a share of the likeliest's.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Makes the answer repeatable.")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10, description="Above 1 makes repetition less likely.")
    logit_bias: dict[TokenId, Bias] | None = Field(
        None,
        description="Token id → added to its logit.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    allowed_token_ids: Tokens[TokenId] | None = Field(
        None, min_length=1, description="The only tokens that may be drawn."
    )
    bad_words: list[Annotated[str, StringConstraints(min_length=1, max_length=1000)]] | None = Field(
        None, max_length=MAX_BAD_WORDS, description="Words whose usual tokens are never drawn in a row."
    )
    stop: StopTexts | None = Field(None, description=f"Up to {MAX_STOPS} texts that end the answer and are not in it.")
    stop_token_ids: Tokens[TokenId] | None = Field(None, description="More tokens that end the answer.")
    include_stop_str_in_output: bool = Field(False, description="Keep the stop text, or the stop token's text.")
    ignore_eos: bool = Field(False, description="Go on after the model's end tokens, up to the limit.")
    min_tokens: int = Field(0, ge=0, description="Nothing ends the answer before it has so many tokens.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    structured_outputs: StructuredOutputs | None = Field(
        None,
        description="As vLLM's: `json`, `json_object`, `regex`, `choice`, `grammar` or `structural_tag` that the "
        "answer meets. The older names `guided_json`, `guided_regex` … are taken, too.",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_guided(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.keys().isdisjoint(GUIDED):
            return given
        older = {GUIDED[name]: value for name, value in given.items() if name in GUIDED and value is not None}
        newer = given.get("structured_outputs") or {}
        kept = {name: value for name, value in given.items() if name not in GUIDED}
        if not older or not isinstance(newer, dict):
            return kept
        return {**kept, "structured_outputs": {**older, **newer}}
