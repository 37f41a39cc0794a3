"""Jobs of the whole product: a picture, and sweeps of a language model."""

import io
import json
import pathlib

import httpx2
import pytest
from PIL import Image

from tests.e2e.conftest import WAIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

FRAME = pathlib.Path(__file__).parents[2] / "services/medical_seg/models/example.jpg"


@pytest.fixture(scope="module")
def http(product):
    with httpx2.Client(base_url=product.url, timeout=120) as client:
        yield client


def post_frame(http, **kwargs):
    return http.post("/v1/segment", files={"image": ("frame.jpg", FRAME.read_bytes(), "image/jpeg")}, **kwargs)


def finished(http, job):
    with http.stream("GET", f"/v1/jobs/{job}/events", timeout=WAIT_S) as events:
        *_, last = (json.loads(line[5:]) for line in events.iter_lines() if line.startswith("data:"))
    assert last["status"] in {"succeeded", "failed", "cancelled"}
    return last


def test_job_answers_what_the_call_answers(http):
    direct = post_frame(http).json()
    accepted = post_frame(http, headers={"prefer": "respond-async"})
    assert accepted.status_code == 202
    job = accepted.json()["id"]
    assert accepted.headers["location"].endswith(f"/v1/jobs/{job}")
    assert finished(http, job)["status"] == "succeeded"
    assert http.get(f"/v1/jobs/{job}/result").json()["mask"] == direct["mask"]


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
