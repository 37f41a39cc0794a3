"""`fovea restore`: what is sent, what is written down, and what happens when a picture takes too long for a request."""

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from fovea.api.job import Job
from fovea.api.restore import Estimate, ImageSimilarity, RestoreOut, RestoreTimes
from fovea.cli.batch_images import write_files
from fovea.cli.commands import restore
from fovea.cli.output import Screen
from fovea.errors import DeadlineExceeded, TooLarge
from fovea.results import JobResult


def answer(**changed: object) -> RestoreOut:
    facts = {
        "model": "rrformer", "version": "1", "engine": "onnx", "variant": "paper", "width": 640, "height": 480,
        "format": "jpeg", "bit_depth": 8, "times": RestoreTimes(), "restored": b"\xff\xd8\xff", "mean_change": 0.125,
        "estimate": Estimate(seconds=12.34, memory_mib=1234, tiles=6, tile_core=256, tile_context=128),
    }  # fmt: skip
    return RestoreOut(**{**facts, **changed})


class Source:
    """A picture of a test."""

    name, stem = "view.jpg", "view"

    async def read(self) -> bytes:
        """Its bytes."""
        return b"\xff\xd8\xff picture"


class Client:
    """Gives prepared answers, and remembers the requests."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.sent = list(answers), []
        self.jobs = SimpleNamespace(wait=self._wait, result=self._result)

    async def send(self, call):
        """Answer the next."""
        self.sent.append(call)
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def _wait(self, job_id, *, on_change):
        on_change(job(progress=0.5, note="tile 3 of 6"))

    async def _result(self, job_id):
        return JobResult("application/json", answer().model_dump_json().encode())


def job(**changed: object) -> Job:
    return Job(
        **{
            "id": "j1", "service": "s", "path": "/v1/restore", "status": "running", "created": datetime.now(UTC),
            **changed,
        }
    )  # fmt: skip


@pytest.fixture
def work(tmp_path):
    return restore._RestoreBatch(Screen(as_json=False), {"variant": "paper", "model": None}, output=tmp_path / "out")


def test_a_picture_is_sent_with_the_options_and_written_with_its_facts(work, capfd):
    client = Client(answer())
    asyncio.run(work._process(client, Source()))
    (call,) = client.sent
    assert (call.path, call.form) == ("/v1/restore", {"variant": "paper"})
    assert call.files["image"][1] == b"\xff\xd8\xff picture"
    assert (work.output / "view.restored.jpg").read_bytes() == b"\xff\xd8\xff"
    assert json.loads((work.output / "view.json").read_text())["estimate"]["tiles"] == 6
    assert "640×480, paper, changed by 12.5 % of white" in capfd.readouterr().out


def test_a_reference_goes_along(work, tmp_path):
    (tmp_path / "clean.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    work.reference = tmp_path / "clean.png"
    assert set(work.build_call(b"x").files) == {"image", "reference"}


def test_what_takes_too_long_goes_on_as_a_job(work, capfd):
    client = Client(DeadlineExceeded("too long"), job())
    asyncio.run(work._process(client, Source()))
    assert client.sent[1].headers["prefer"] == "respond-async"
    assert (work.output / "view.restored.jpg").exists()
    assert "job j1" in capfd.readouterr().err


def test_one_failure_is_told_and_counted(work, capfd):
    asyncio.run(work._process(Client(TooLarge("The picture is too large.")), Source()))
    assert work.failed == 1
    assert "view.jpg" in capfd.readouterr().err
    assert not work.output.exists()


def test_all_layers_that_came_are_written(tmp_path):
    layers = restore.list_files(answer(format="png", reflection=b"r", comparison=b"c"))
    files = write_files(tmp_path, "a", layers)
    assert {file.rpartition("/")[2] for file in files} == {
        "a.restored.png", "a.reflection.png", "a.comparison.jpg", "a.json",
    }  # fmt: skip


def test_a_dry_run_tells_its_cost():
    assert restore.summarise(answer(restored=None)) == "640×480 in 6 tiles would take about 12.3 s and 1,234 MiB"


def test_likeness_is_told_before_and_after():
    told = restore.summarise(
        answer(input_likeness=ImageSimilarity(psnr=20, ssim=0.8), likeness=ImageSimilarity(psnr=None, ssim=1))
    )
    assert told.endswith("20.0 dB → equal")
