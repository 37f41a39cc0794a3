"""Vision services serve without torch: not imported at start, for a request, nor where a graph must be exported."""

import json
import subprocess
import sys

import pytest

SERVE = """
import json, sys
from fastapi.testclient import TestClient
from shared.serving.replica import load_app
app = load_app(sys.argv[1])
host = app.state.host
answers = {}
with TestClient(app) as client:
    while host.is_loading:
        client.get("/livez")
    models = client.get("/v1/models").json()["data"]
    for name in (model["id"] for model in models if model["ready"]):
        card = host.slot(name).servable
        answers[name] = client.post(f"/v1/{card.card.task}", content=json.dumps({
            "model": name, **card.example().model_dump(mode="json", exclude_unset=True)})).status_code
print(json.dumps({"answers": answers, "states": {model["id"]: model["reason"] or model["state"] for model in models},
                  "torch": sorted(name for name in sys.modules if name.partition(".")[0] == "torch")[:5]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("service", ["medical-seg", "vision-restoration", "detection"])
def test_a_vision_service_exports_and_answers_without_torch(service, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path))
    command = [sys.executable, "-c", SERVE, service]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["states"].values()) == {"ready"}
    assert set(told["answers"].values()) == {200}
    assert told["torch"] == []
    assert list(tmp_path.rglob("*.onnx"))
