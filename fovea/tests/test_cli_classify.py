"""`fovea classify`: what it asks, what it prints and writes, and what one bad picture costs."""

import asyncio
import json

import pytest

from fovea.cli.commands import classify as verb
from fovea.cli.concurrency import run_concurrently
from fovea.tests.answering_gateway import AnsweringGateway
from shared.api.classes import Candidate, Classified, ClassifyIn, ClassifyOut
from shared.api.timings import Times


def answer(labels, columns=1):
    results = [
        Classified(
            label=label,
            class_id=0,
            probability=0.9,
            box=(0, 0, 8, 8),
            top=[
                Candidate(label=label, class_id=0, probability=0.9),
                Candidate(label="other", class_id=1, probability=0.1),
            ],
        )
        for label in labels
    ]
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    return ClassifyOut(
        model="m", version="1", engine="onnx", width=8, height=8, rows=len(labels) // columns, columns=columns,
        results=results, counts=counts, times=Times(),
    )  # fmt: skip


def reply(options, accept):
    if accept == "image/jpeg":
        return b"jpeg"
    labels = ["crack", "crack", "none", "none"] if options.get("tile") else ["crack"]
    return answer(labels).model_dump(mode="json")


@pytest.fixture
def gateway(monkeypatch):
    made = AnsweringGateway(ClassifyIn, reply)
    monkeypatch.setattr(verb, "Connection", lambda *_: made)
    return made


def classify(*words, options=None, **more):
    verb._classify([str(word) for word in words], options or {}, **more)


def test_a_whole_picture_is_told_with_its_candidates(gateway, folder, capsys):
    classify(folder / "a.jpg")
    assert capsys.readouterr().out == f"{folder / 'a.jpg'}: crack 90.0%, other 10.0%\n"
    assert gateway.asked == [("classify", {"model": "default-classify"}, None)]


def test_patches_are_counted_and_options_reach_the_model(gateway, folder, capsys):
    classify(folder / "a.jpg", options={"tile": 96}, model="patnet")
    assert "2 × crack, 2 × none" in capsys.readouterr().out
    assert gateway.asked[0][1] == {"tile": 96, "model": "patnet"}


def test_answer_and_tinted_picture_are_written_where_asked(gateway, folder, capsys):
    classify(folder / "a.jpg", output=folder / "out", as_json=True)
    assert json.loads((folder / "out" / "a.json").read_text())["results"][0]["label"] == "crack"
    assert (folder / "out" / "a.classes.jpg").read_bytes() == b"jpeg"
    assert [accept for *_, accept in gateway.asked] == [None, "image/jpeg"]
    assert json.loads(capsys.readouterr().out)["file"].endswith("a.jpg")


def test_deeds_never_run_more_than_so_many_at_a_time():
    running, most = 0, 0

    async def deed():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    asyncio.run(run_concurrently([deed] * 9, 3, verb.Screen(as_json=True), "doing"))
    assert (running, most) == (0, 3)
