"""OpenAI's Agents SDK: agents with a tool and with an output type, whole and streamed, over chats and responses."""

import asyncio
import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI
from pydantic import BaseModel

url, model, _ = sys.argv[1:]
calls = []


class Switch(BaseModel):
    """Whether something is on."""

    on: bool


@function_tool
def switch(on: bool) -> str:
    calls.append(on)
    return "done"


async def main():
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        spoken = {"name": "a", "instructions": "Be brief.", "model": kind(model=model, openai_client=client)}
        assert isinstance((await Runner.run(Agent(**spoken, output_type=Switch), "On?")).final_output, Switch)
        forced = ModelSettings(tool_choice="required", max_tokens=300, parallel_tool_calls=False)
        # Over responses the SDK takes an answer that was cut off as a failure, and a random model never ends its own.
        behaviour = "run_llm_again" if kind is OpenAIChatCompletionsModel else "stop_on_first_tool"
        able = Agent(**spoken, tools=[switch], model_settings=forced, tool_use_behavior=behaviour)
        before = len(calls)
        assert (await Runner.run(able, "On?")).final_output
        kinds = [event.type async for event in Runner.run_streamed(able, "On?").stream_events()]
        assert ("run_item_stream_event" in kinds, len(calls) - before) == (True, 2)


asyncio.run(main())
