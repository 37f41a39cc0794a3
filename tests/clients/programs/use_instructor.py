"""instructor: models of pydantic by tools, by JSON Schema, by responses, in parts, and from Anthropic's client."""

import sys

import anthropic
import instructor
import openai
from pydantic import BaseModel

url, model, _ = sys.argv[1:]


class Switch(BaseModel):
    """Whether something is on."""

    on: bool


raw = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
asked = {"model": model, "messages": [{"role": "user", "content": "On or off?"}], "response_model": Switch}
asked |= {"max_tokens": 300, "max_retries": 0}
for mode in ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"):
    found = instructor.from_openai(raw, mode=instructor.Mode[mode]).chat.completions.create(**asked)
    assert isinstance(found, Switch), mode
parts = list(instructor.from_openai(raw, mode=instructor.Mode.TOOLS).chat.completions.create_partial(**asked))
assert isinstance(parts[-1].on, bool)
claude = instructor.from_anthropic(anthropic.Anthropic(base_url=url, api_key="none"))
assert isinstance(claude.messages.create(**asked), Switch)
