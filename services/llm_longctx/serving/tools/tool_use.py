"""Tool use of one request: which functions may be called, whether one must be, in which form, and the description.

The form is the one that the model's chat template teaches, or Hermes' under instructions of our own. Knows the
protocol's fields; knows no tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from fovea.api.text import ChatMessage, ChatRequest
from fovea.api.tools import FunctionDefinition, NamedToolChoice
from fovea.errors import InvalidOption
from services.llm_longctx.serving.grammars.sources import (
    HEADER,
    describe_error,
    find_unenforced,
    json_expression,
    json_source,
)
from services.llm_longctx.serving.scan_forms import scan_forms
from services.llm_longctx.serving.tools import parsers
from services.llm_longctx.serving.tools.parsers.hermes import HermesParser
from services.llm_longctx.serving.tools.tool_parser import ToolParser

MAX_TOOLS = 128
"""Functions in one request."""

MAX_CALLS = 8
"""Calls that a forced answer may make at once."""

_INSTRUCTIONS = """You can call functions. These are their signatures, one a line:
<tools>
{tools}
</tools>

To call a function, answer with nothing but its name and its arguments as a JSON object between tool_call tags:
<tool_call>
{{"name": "<function>", "arguments": {{<arguments>}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A request's options of tools.

    Attributes:
        functions: Functions that may be called, in the caller's order.
        parser: The form of calls.
        is_native: Whether the model's template takes tools.
        is_forced: Whether the answer must be calls.
        is_parallel: Whether it may be several.
    """

    functions: tuple[FunctionDefinition, ...]
    parser: type[ToolParser]
    is_native: bool
    is_forced: bool
    is_parallel: bool

    def grammar_source(self, form: str | None = None) -> str:
        """The grammar of a forced answer or of one call in a free one; of calls or a form, given as one rule."""
        calls = [self.parser.call_rule(function, _to_rule) for function in self.functions]
        rules = [f"call_{i}: {call}" for i, call in enumerate(calls)]
        choice = " | ".join(f"call_{i}" for i in range(len(calls)))
        is_several = self.is_parallel and (self.is_forced or form is not None)
        start = f'call ("\\n" call){{0,{MAX_CALLS - 1}}}' if is_several else "call"
        start += "" if form is None else f" | {form.removeprefix(f'{HEADER}start: ')}"
        return "\n".join([f"{HEADER}start: {start}", f"call: {choice}", *rules, *self.parser.rules])

    @property
    def unenforced(self) -> list[str]:
        """Keywords of the functions' schemas that are left to the model."""
        return [name for f in self.functions if not f.strict for name in find_unenforced(f.arguments_schema)]

    def describe(self) -> list[dict[str, Any]]:
        """The functions as templates take them."""
        return [
            {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})}
            for function in self.functions
        ]

    def instruct(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A conversation for a template that knows no tools: instructions, calls and results become text."""
        tools = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.describe())
        told = _INSTRUCTIONS.format(tools=tools)
        turns = [spell_message(message, self.parser) for message in messages]
        if turns and turns[0]["role"] == "system":
            return [{**turns[0], "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
        return [{"role": "system", "content": told}, *turns]


def spell_message(message: Mapping[str, Any], parser: type[ToolParser] = HermesParser) -> dict[str, Any]:
    """A message whose calls or result are text, for a template that knows no tools."""
    role, content = message["role"], message.get("content") or ""
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [
        parser.write_call(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
        for call in message.get("tool_calls") or ()
    ]
    kept = {name: message[name] for name in ("name", "reasoning_content") if name in message}
    return {"role": role, "content": "\n".join([*([content] if content else []), *calls]), **kept}


def read_tool_use(request: ChatRequest, template: str | None) -> ToolUse | None:
    """A request's options of tools, under a model's chat template; None where nothing may be called.

    Raises InvalidOption: Too many functions, two of one name, arguments that no schema describes, a choice of none.
    """
    functions = tuple(tool.function for tool in request.tools or ())
    _check_functions(functions)
    choice = request.tool_choice or ("auto" if functions else "none")
    if isinstance(choice, NamedToolChoice):
        functions = tuple(f for f in functions if f.name == choice.function.name)
        if not functions:
            detail = f"tool_choice names {choice.function.name!r}, which is none of the tools."
            raise InvalidOption(detail, field="tool_choice")
    elif choice == "required" and not functions:
        raise InvalidOption("tool_choice is required, but there are no tools.", field="tool_choice")
    if request.parallel_tool_calls is not None and not functions:
        raise InvalidOption("parallel_tool_calls needs tools.", field="parallel_tool_calls")
    if choice == "none" or not functions:
        return None
    is_native = has_tools(template)
    return ToolUse(
        functions=functions,
        parser=find_parser(template or "") if is_native else HermesParser,
        is_native=is_native,
        is_forced=choice != "auto",
        is_parallel=not isinstance(choice, NamedToolChoice) and request.parallel_tool_calls is not False,
    )


def has_tools(template: str | None) -> bool:
    """Whether a chat template takes tools."""
    return template is not None and "tools" in template


def find_parser(template: str) -> type[ToolParser]:
    """The form that a chat template teaches; Hermes' where it is none that is known."""
    known = scan_forms(parsers.__name__, ToolParser)
    return next((parser for parser in known if parser.detects(template)), HermesParser)


def _to_rule(schema: Mapping[str, Any] | bool) -> str:
    return json_expression(schema, "tools", is_strict=False)


def _check_functions(functions: Sequence[FunctionDefinition]) -> None:
    if len(functions) > MAX_TOOLS:
        raise InvalidOption(f"There are {len(functions)} tools; {MAX_TOOLS} are taken.", field="tools")
    names: set[str] = set()
    for function in functions:
        if function.name in names:
            raise InvalidOption(f"Two tools are called {function.name!r}.", field="tools")
        names.add(function.name)
        source = json_source(function.arguments_schema, "tools", is_strict=bool(function.strict))
        if (error := LLMatcher.validate_grammar(source)) and not error.startswith("WARNING"):
            detail = (
                f"The parameters of {function.name!r} are no JSON Schema that can be used: {describe_error(error)}."
            )
            raise InvalidOption(detail, field="tools")


def to_plain(message: ChatMessage, content: str) -> dict[str, Any]:
    """A message as templates take it: arguments of calls are objects."""
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": c.function.name, "arguments": _arguments(c.function.arguments)},
            }
            for c in message.tool_calls
        ]
    plain |= {name: value for name in ("name", "reasoning_content") if (value := getattr(message, name))}
    if message.role == "tool":
        plain |= {"tool_call_id": message.tool_call_id or "", "name": message.name or ""}
    return plain


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call as an object: clients send back calls that were cut off at the token limit, too."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = text
    return found if isinstance(found, dict) else {"arguments": text}
