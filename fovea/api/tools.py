"""Tool calls on the wire: the functions that a model may call, and its calls, whole and streamed."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"


class FunctionDefinition(BaseModel, extra="allow"):
    """A function that the caller can run."""

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of its arguments; left out, it has none.")
    strict: bool | None = Field(None, description="Refuse keywords of the schema that can't be enforced.")

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The schema of its arguments: without `parameters`, of an empty object; `{}` allows any object."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return self.parameters or {"type": "object"}


class Tool(BaseModel, extra="allow"):
    """Something that a model may call; only functions are understood."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(BaseModel, extra="allow"):
    """Names a function."""

    name: str


class NamedToolChoice(BaseModel, extra="allow"):
    """The one function that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


def _refuse_other_types(choice: Any) -> Any:
    if isinstance(choice, dict) and (kind := choice.get("type", "function")) != "function":
        raise ValueError(f"{kind!r:.40} is not served: send the tools that may be called, and 'auto' or 'required'")
    return choice


ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedToolChoice, BeforeValidator(_refuse_other_types)]


class FunctionCall(BaseModel, extra="allow"):
    """A call: the function, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel, extra="allow"):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(BaseModel):
    """Addition of a chunk to a call: its name comes first, its arguments piece by piece."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """Addition of a chunk to the call with this index."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta
