"""The product starts, sends its first requests, does jobs, and leaves nothing behind."""

import io
import json

import httpx2
import psutil
import pytest
from PIL import Image

from shared.registry.discovery import services_with_models
from tests.e2e.conftest import START_S, WAIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

DRAWN = {"vision-restoration", "medical-seg", "detection", "interpretability"}
"""Services whose first answer is also a picture."""


def test_first_requests_write_json_for_each_service_and_a_picture_where_it_draws(product):
    services = services_with_models()
    assert len(services) == 6
    for service in services:
        files = list((product.folder / "out" / service).iterdir())
        assert [json.loads(file.read_text("utf8")) for file in files if file.suffix == ".json"] != [], service
        pictures = [file for file in files if file.suffix == ".png"]
        assert bool(pictures) == (service in DRAWN), service
        assert all(file.stat().st_size > 1000 for file in pictures), service
    assert product.log.count("✓") == 6
    assert f":{product.http}" in product.log


def test_once_ends_with_0_and_leaves_no_process(launch, tmp_path):
    made = launch(tmp_path, "--once", FOVEA_ENABLED_SERVICES="medical-seg")
    assert made.process.wait(START_S) == 0, made.log
    assert made.left_behind() == []


def test_killed_supervisor_leaves_no_process(launch, tmp_path):
    made = launch(tmp_path, FOVEA_ENABLED_SERVICES="medical-seg")
    for words in (["fovea replica", "medical-seg"], ["services.gateway"], ["server", "127.0.0.1"]):
        made.wait_for(lambda words=words: made.processes(*words), START_S)
    family = made.processes()
    made.process.kill()
    made.process.wait()
    _, alive = psutil.wait_procs(family, 120)
    assert alive == []
    assert made.left_behind() == []


@pytest.fixture(scope="module")
def http(product):
    with httpx2.Client(base_url=product.url, timeout=120) as client:
        yield client


def finished(http, job):
    with http.stream("GET", f"/v1/jobs/{job}/events", timeout=WAIT_S) as events:
        *_, last = (json.loads(line[5:]) for line in events.iter_lines() if line.startswith("data:"))
    assert last["status"] in {"succeeded", "failed", "cancelled"}
    return last


def test_needle_grid_and_fidelity_run_as_jobs(http):
    wish = {"prefer": "respond-async"}
    spec = {"lengths": [400], "depths": [0, 100], "steps": 4, "longctx": {"method": "duo"}}
    job = http.post("/v1/longctx/needle", json=spec, headers=wish | {"accept": "image/png"}).json()["id"]
    long = {"lengths": [1000, 2000, 4000], "steps": 200, "longctx": {"method": "dhsa"}}
    other = http.post("/v1/longctx/fidelity", json=long, headers=wish).json()["id"]
    assert finished(http, job)["status"] == "succeeded"
    drawn = http.get(f"/v1/jobs/{job}/result")
    assert drawn.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(drawn.content)) as grid:
        assert grid.format == "PNG"
    assert http.post(f"/v1/jobs/{other}/cancel").status_code == 200
    assert finished(http, other)["status"] == "cancelled"
