"""Thirty-two requests at the same time against one judge, through the platform: each gets its own verdicts."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2

from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.registry import LoadContext
from shared.serving.build_app import build
from shared.settings import Settings

REQUESTS, EACH = 32, 5


def _grade(body: dict[str, Any]) -> str:
    """The grade that the passage itself names, after a moment in which requests could get mixed up."""
    told = body["messages"][-1]["content"].split("worth ")[1][0]
    time.sleep(0.002)
    return f"##final score: {told}"


async def test_every_caller_gets_the_grades_of_its_own_pairs(tmp_path: Path) -> None:
    model = FakeModel(_grade)

    class Answering(PromptedGrade):
        card = PromptedGrade.card

        @classmethod
        def load(cls, _place: LoadContext) -> Any:
            """Needs no endpoint."""
            return cls(model.client())

    settings = Settings(_env_file=None, data_dir=tmp_path, shutdown_grace_s=1, max_queue_size=64)
    app = build("relevance-judge", servables={"prompted-grade": Answering}, settings=settings)
    await app.state.host.start()
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://judge") as client:

            async def send(number: int) -> Any:
                passages = [f"request {number} pair {n} is worth {(number + n) % 4} ." for n in range(EACH)]
                body = {"query": f"question {number}", "passages": passages, "rationale": bool(number % 2)}
                return (await client.post("/v1/judge", json=body, timeout=60)).json()

            found = await asyncio.gather(*map(send, range(REQUESTS)))
    finally:
        await app.state.host.stop()
    for number, answer in enumerate(found):
        assert [row["grade"] for row in answer["results"]] == [(number + n) % 4 for n in range(EACH)]
        assert all((row["rationale"] is not None) == bool(number % 2) for row in answer["results"])
    assert len(model.asked) == REQUESTS * EACH
