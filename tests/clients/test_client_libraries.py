"""Conformance with client libraries: each but OpenAI's has an environment of its own, which is made on demand."""

import json
import subprocess
from pathlib import Path

import openai
import pytest
from pydantic import BaseModel

from services.llm_longctx.tests.conftest import MODEL
from shared.lm.bundled_models import MINILM
from tests.clients.conftest import OFFLINE, environment

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))
ASK = [{"role": "user", "content": "On or off?"}]


class Switch(BaseModel):
    """Whether something is on."""

    on: bool


SCHEMA = Switch.model_json_schema() | {"additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "switch", "description": "Turn it.", "parameters": SCHEMA}}


def test_openai(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    parsed = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Switch, max_tokens=300)
    assert isinstance(parsed.choices[0].message.parsed, Switch)
    forced = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300}
    with client.chat.completions.stream(model=MODEL, messages=ASK, **forced) as stream:
        kinds = {event.type for event in stream}
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert set(json.loads(calls[0].function.arguments)) == {"on"}
    assert client.models.retrieve(MODEL).id == MODEL
    assert len(client.embeddings.create(model=MINILM, input="a", dimensions=16).data[0].embedding) == 16
    assert client.responses.parse(model=MODEL, input="On?", text_format=Switch).output_parsed is not None
    with pytest.raises(openai.NotFoundError, check=lambda e: len(e.message) < 200):
        client.moderations.create(input="a")


@pytest.mark.release
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_of_its_users_runs(url, program):
    command = [environment(program.stem, program.with_suffix(".txt")), program, url, MODEL, MINILM]
    done = subprocess.run(command, env=OFFLINE, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
