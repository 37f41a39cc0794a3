"""Structured output over HTTP: chat and completions, whole and streamed, several answers, under every method."""

import json
import re

from pydantic import BaseModel

from services.llm_longctx.tests.conftest import HELLO, MODEL, go_on, say


class Flags(BaseModel):
    """Small enough to be finished by a random model."""

    on: bool
    level: int | None


SHORT = {
    "type": "json_schema",
    "json_schema": {
        "name": "flags",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "level": {"enum": [1, 20, 300]}},
            "required": ["on", "level"],
            "additionalProperties": False,
        },
    },
}


def test_a_schema_is_met_under_a_method(client):
    longctx = {"method": "streamingllm", "sink": 4, "recent": 16}
    answer = say(client, response_format=SHORT, extra_body={"longctx": longctx}, temperature=1.2, n=2, max_tokens=100)
    for choice in answer.choices:
        assert (choice.finish_reason, set(json.loads(choice.message.content))) == ("stop", {"on", "level"})


def test_completions_take_the_same_forms(client):
    text = go_on(client, extra_body={"structured_outputs": {"regex": "[ab]{3}"}}, temperature=1.0).choices[0].text
    assert re.fullmatch("[ab]{3}", text)
    several = go_on(client, ["x", "y"], extra_body={"structured_outputs": {"choice": ["ab", "cd"]}}, n=2)
    assert {choice.text for choice in several.choices} <= {"ab", "cd"}
    assert json.loads(go_on(client, extra_body={"response_format": SHORT}, max_tokens=100).choices[0].text)


def test_openais_parse_returns_the_object(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Flags, max_tokens=150, temperature=0, logit_bias={"125": 8}
    )
    assert isinstance(answer.choices[0].message.parsed, Flags)
