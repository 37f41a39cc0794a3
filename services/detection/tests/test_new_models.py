"""Weights that are trained while the service runs are served without a restart, and so are those that replace them."""

import shutil

from services.detection.models.bmn import BmnActionDetector
from shared.registry.weights import read_manifest
from shared.serving import trained_models
from tests.harness.models import client_of
from tests.harness.waiting import wait_until

SHIPPED = BmnActionDetector.folder / "bmn.safetensors"


def test_a_model_trained_meanwhile_is_served_and_a_broken_one_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_models, "FOLDER_POLL_S", 0.05)
    manifest = read_manifest(SHIPPED).model_copy(update={"serves": "bmn"})

    def write(name, **changed):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHIPPED, folder / f"{name}.safetensors")
        draft = folder / "draft"
        draft.write_text(manifest.model_copy(update={"name": name, **changed}).model_dump_json())
        draft.replace(folder / f"{name}.json")

    with client_of(tmp_path, "detection", {"bmn": BmnActionDetector}) as client:
        folder = client.app.state.settings.weights_dir
        example = client.get("/v1/models/bmn/example").json()
        assert client.post("/v1/actions", json={**example, "model": "mine"}).status_code == 404
        write("broken", sha256="0" * 64)
        write("mine", data={"folder": "matches"})
        wait_until(lambda: client.get("/v1/models/mine").status_code == 200, 60)
        assert "matches" in client.get("/v1/models/mine").json()["summary"]
        answer = client.post("/v1/actions", json={**example, "model": "mine"}).json()
        assert answer["proposals"] == client.post("/v1/actions", json={**example, "model": "bmn"}).json()["proposals"]
        assert client.get("/readyz").status_code == 200
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["bmn", "mine"]
        write("mine", data={"folder": "more matches"})
        wait_until(lambda: "more" in client.get("/v1/models/mine").json()["summary"], 60)
        assert client.post("/v1/actions", json={**example, "model": "mine"}).status_code == 200
