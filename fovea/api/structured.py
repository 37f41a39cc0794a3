"""Structured output on the wire: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import Texts

Schema = dict[str, Any] | bool

MAX_TAGS: Final = 128
"""Tags in one request."""


class JsonSchemaFormat(BaseModel, extra="allow", populate_by_name=True):
    """A JSON Schema that the answer meets."""

    name: str = Field("answer", pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Name of the answer.")
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema", description="The schema; left out, any object.")
    strict: bool | None = Field(
        None, description="Refuse keywords that can't be enforced, instead of leaving them to the model."
    )


class TagStructure(BaseModel):
    """A part of a free answer that a schema describes: it stands between two texts."""

    begin: str = Field(min_length=1, description="Begins with a trigger; from there on the schema holds.")
    schema_: Schema | None = Field(None, alias="schema", description="The schema; left out, any JSON.")
    end: str = Field(description="The text behind it; may be empty.")


class ResponseFormat(BaseModel, extra="allow"):
    """The form of the answer: free text, any JSON object, one that meets a schema, one of several texts, or tags."""

    type: Literal["text", "json_object", "json_schema", "choice", "structural_tag"] = "text"
    json_schema: JsonSchemaFormat | None = Field(None, description="With `json_schema`.")
    choices: Texts[str] | None = Field(None, description="Ours, with `choice`: one of them is answered.")
    structures: list[TagStructure] | None = Field(None, max_length=MAX_TAGS, description="With `structural_tag`.")
    triggers: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, max_length=MAX_TAGS, description="With `structural_tag`: each begins the `begin` of one tag or more."
    )


class StructuredOutputs(BaseModel, extra="forbid", populate_by_name=True):
    """The form of the answer as vLLM takes it: one of its fields, but for the last two."""

    json_: Schema | str | None = Field(None, alias="json", description="A JSON Schema, or its text.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, description="A regular expression that the whole answer matches; no look-around.")
    choice: Texts[str] | None = Field(None, description="One of these texts.")
    grammar: str | None = Field(None, description="A context-free grammar, in Lark's form or GBNF.")
    structural_tag: str | None = Field(None, description="JSON text of `structures` and `triggers`.")
    disable_any_whitespace: bool = Field(False, description="Write JSON without white space.")
    whitespace_pattern: str | None = Field(None, description="White space in JSON, as a regular expression.")
