"""Against a real Label Studio: connect, first labels, labels by people, a training that it starts.

Takes the one of LABEL_STUDIO_URL and LABEL_STUDIO_TOKEN, else starts one of its own.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from fovea_labelstudio.backend import LabelStudioBackend, build_backend_app
from fovea_labelstudio.brush_codec import decode_brush, encode_brush
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.predictor import Predictor
from fovea_labelstudio.settings import LabelStudioSettings
from fovea_labelstudio.training_run import TrainingPlan, TrainingRuns
from plugins.labelstudio.tests.stand import BRUSH, FRAME, gateway
from plugins.labelstudio.tests.test_label_studio_backend import SHORT, draw_disc, truth
from tests.harness.waiting import free_port, wait_until

ROOT = Path(__file__).parents[3]
PROGRAM = shutil.which("label-studio") or shutil.which("label-studio", path=str(ROOT / ".label-studio/bin"))
TOKEN = "0123456789abcdef0123456789abcdef01234567"
PATIENCE_S = 900
DISCS = 16

pytestmark = [
    pytest.mark.release,
    pytest.mark.e2e,
    pytest.mark.skipif(
        PROGRAM is None and "LABEL_STUDIO_URL" not in os.environ,
        reason="LABEL STUDIO IS NOT TESTED: it is not installed. "
        "python -m venv .label-studio && .label-studio/bin/pip install label-studio",
    ),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    if url := os.environ.get("LABEL_STUDIO_URL"):
        yield url, os.environ["LABEL_STUDIO_TOKEN"]
        return
    folder, port = tmp_path_factory.mktemp("label-studio"), free_port()
    quiet = {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False"}
    quiet |= {"ML_BLOCK_LOCAL_IP": "False", "SSRF_PROTECTION_ENABLED": "False"}  # the backend is on loopback
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [PROGRAM, "start", "--no-browser", "--port", str(port), "--data-dir", str(folder)]
    words += ["--username", "a@example.org", "--password", "a-long-password", "--user-token", TOKEN]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*words, "--enable-legacy-api-token"], env={**kept, **quiet}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def is_up():
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{url}/health", timeout=10).status_code == 200
        return False

    try:
        wait_until(is_up, PATIENCE_S, "Label Studio's start")
        yield url, TOKEN
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def listening(url: str, studio: tuple[str, str], plan: TrainingPlan) -> Iterator[str]:
    port, files = free_port(), LabelStudio(*studio, limit=2**24)
    sdk = httpx2.AsyncClient(base_url=url, trust_env=False, timeout=90)
    backend = LabelStudioBackend(Predictor(sdk, files, [plan.name, "pranet"]), TrainingRuns(files, plan))
    settings = LabelStudioSettings(_env_file=None)
    server = uvicorn.Server(uvicorn.Config(build_backend_app(backend, settings), port=port, log_config=None))

    async def serve() -> None:
        async with sdk:
            await server.serve()
            await files.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    wait_until(lambda: server.started, what="the server's start")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_label_studio_gets_first_labels_and_starts_a_training(studio, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path / "data"))
    plan = TrainingPlan("segment", "pranet", "pranet-annotated", tmp_path / "runs", 10**6, SHORT)
    headers = {"authorization": f"Token {studio[1]}"}
    api = httpx2.Client(base_url=studio[0], headers=headers, timeout=300, trust_env=False)

    def call(method: str, path: str, **more: Any) -> Any:
        answer = api.request(method, path, **more)
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    project = call("POST", "/api/projects", json={"title": "polyps", "label_config": BRUSH})["id"]
    call("POST", f"/api/projects/{project}/import", files={"file": ("frame.jpg", FRAME.read_bytes(), "image/jpeg")})
    (task,) = call("GET", f"/api/tasks?project={project}")["tasks"]
    with gateway(tmp_path / "gateway") as fovea, listening(fovea, studio, plan) as backend:
        connected = call("POST", "/api/ml", json={"url": backend, "project": project, "title": "Fovea"})
        assert connected["state"] == "CO", connected
        chosen = {"selectedItems": {"all": True, "excluded": []}, "project": str(project)}
        call("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=chosen)
        (prediction,) = call("GET", f"/api/tasks/{task['id']}")["predictions"]
        mask = truth(fovea)
        assert (decode_brush(prediction["result"][0]["value"]["rle"], *mask.shape) == mask).all()
        assert prediction["model_version"].startswith("pranet ")
        assert 0.5 < prediction["score"] <= 1

        call("POST", f"/api/tasks/{task['id']}/annotations", json={"result": prediction["result"]})
        for number in range(DISCS):
            picture, disc = draw_disc(number)
            files = {"file": (f"{number}.png", picture, "image/png")}
            call("POST", f"/api/projects/{project}/import", files=files)
            value = {"format": "rle", "rle": encode_brush(disc), "brushlabels": ["Polyp"]}
            sizes = {"original_width": 96, "original_height": 96, "image_rotation": 0}
            region = {"type": "brushlabels", "from_name": "tag", "to_name": "img", "value": value, **sizes}
            newest = max(each["id"] for each in call("GET", f"/api/tasks?project={project}&page_size=100")["tasks"])
            call("POST", f"/api/tasks/{newest}/annotations", json={"result": [region]})
        call("POST", f"/api/ml/{connected['id']}/train")

        def finished():
            found = httpx2.get(f"{backend}/status", timeout=60).json()
            return found["status"] not in {"exporting", "training"} and found

        state = wait_until(finished, PATIENCE_S, "the training's end")
    api.close()
    assert state["status"] == "finished", (state, (tmp_path / f"runs/project-{project}.log").read_text())
    assert (state["pictures"], state["left_out"]) == (DISCS + 1, {})
    assert (tmp_path / "data/weights/pranet-annotated.safetensors").exists()
