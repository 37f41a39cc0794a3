"""`fovea survey`: photographs through the gateway, to GeoJSON, a map and figures."""

import json

import httpx2

from plugins.survey.tests.test_survey import photograph
from services.detection.models.planner import FoveaPlanner
from services.detection.models.yolo9tr import Yolo9trBoxDetector
from services.gateway.tests.stage import fronted
from shared.serving.build_app import build
from shared.settings import Settings
from tests.command import command_runner
from tests.harness.waiting import wait_until


def test_a_folder_of_photographs_becomes_a_map(tmp_path, monkeypatch, capfdbinary):
    drive = tmp_path / "drive"
    drive.mkdir()
    for number in range(3):
        (drive / f"{number}.jpg").write_bytes(photograph(50 + number * 0.0004, 8, number))
    settings = Settings(_env_file=None, data_dir=tmp_path, intra_op_threads=1)
    servables = {"yolo9tr": Yolo9trBoxDetector, "planner": FoveaPlanner}
    app = build("detection", servables=servables, settings=settings)
    with fronted(app, "detection", tmp_path) as (url, _, _):
        wait_until(lambda: httpx2.post(f"{url}/v1/detect/survey").status_code != 404 and is_ready(url), 120)
        monkeypatch.setenv("FOVEA_URL", url)
        code, out, err = command_runner(monkeypatch, capfdbinary)("survey", drive, "-o", tmp_path / "out")
    assert not code, err
    assert "0.089 km" in out
    found = json.loads((tmp_path / "out" / "survey.json").read_text())
    points = json.loads((tmp_path / "out" / "survey.geojson").read_text())["features"]
    assert sum(one["properties"]["kind"] == "damage" for one in points) == len(found["damages"]) > 0
    assert (tmp_path / "out" / "survey.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "survey.csv").read_text().startswith("label,latitude")


def is_ready(url: str) -> bool:
    entries = httpx2.get(f"{url}/v1/models").json()["data"]
    return bool(entries) and all(one["ready"] for one in entries)
