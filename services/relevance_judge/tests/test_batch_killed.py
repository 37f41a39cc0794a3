"""A batch whose process is killed with SIGKILL goes on where it was: no label is lost, and none is asked for twice."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.relevance_judge.batches import label_log
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.settings import environment
from shared.storage import ObjectStore
from tests.harness.waiting import free_port, wait_until

PAIRS, AT_ONCE = 40, 3
BODY = {
    "model": "prompted-grade",
    "topics": "1\tq\n",
    "passages": "".join(f"p{n}\ttext number {n} .\n" for n in range(PAIRS)),
    "at_once": AT_ONCE,
}


def _asked(model: FakeModel) -> Counter[str]:
    shown = (body["messages"][-1]["content"] for body in model.asked if "messages" in body)
    return Counter(text.split("text number ")[1].split()[0] for text in shown)


class Service:
    """The service in a process of its own."""

    def __init__(self, folder: Path, model_url: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "shared.serving", "relevance-judge", "--http-port", str(port)]
        told = environment(FOVEA_DATA_DIR=str(folder), FOVEA_JUDGE_BASE_URL=model_url, FOVEA_REDIS_URL="")
        self.process = subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self._ready() or self.process.poll() is not None, 60, "the service's readiness")
        assert self.process.poll() is None

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def post(self) -> Any:
        """The batch's answer, or None where the process died under it."""
        try:
            return httpx2.post(f"{self.url}/v1/judge/batches", json=BODY, timeout=60).json()
        except httpx2.HTTPError:
            return None

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.mark.parametrize("kills", [(8,), pytest.param((8, 20), marks=pytest.mark.release)], ids=["once", "twice"])
def test_a_batch_killed_in_the_middle_is_finished_without_asking_again(tmp_path, kills):
    def slowly(_: dict[str, Any]) -> str:
        time.sleep(0.03)
        return "2"

    model = FakeModel(slowly)
    server = model.serve()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        for enough in kills:
            service = Service(tmp_path, url)
            sender = threading.Thread(target=service.post)
            sender.start()
            while sum(_asked(model).values()) < enough:
                time.sleep(0.005)
            service.kill()
            sender.join(10)
            (log,) = tmp_path.rglob("labels/*")
            kept = [line["pair"] for line in label_log.read_label_log(ObjectStore.open(log.as_uri()))]
            assert len(kept) == len(set(kept)) < PAIRS
            assert len(kept) >= enough - 2 * AT_ONCE  # what the model had answered is there
        service = Service(tmp_path, url)
        done = service.post()
        labels = httpx2.get(f"{service.url}{done['files']['jsonl']}").text.splitlines()
        service.kill()
    finally:
        server.shutdown()
        server.server_close()
    assert (done["graded"], done["left"], done["failed"]) == (PAIRS, 0, 0)
    assert done["reused"] >= kills[-1] - 2 * AT_ONCE
    assert {json.loads(line)["docid"] for line in labels} == {f"p{n}" for n in range(PAIRS)}
    asked = _asked(model)
    assert len(asked) == PAIRS
    # Only pairs under way at the moment of a kill may have been asked again: at most that many per kill.
    assert sum(asked.values()) - PAIRS <= len(kills) * AT_ONCE
    kept = [line["pair"] for line in label_log.read_label_log(ObjectStore.open(log.as_uri()))]
    assert len(kept) == len(set(kept)) == PAIRS
