"""Real clients against the whole product: curl's forms, `openai`, `tritonclient`, jobs."""

import io
import json
import pathlib

import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image

from tests.e2e.conftest import WAIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

FRAME = pathlib.Path(__file__).parents[2] / "services/medical_seg/models/example.jpg"
QUESTION = [{"role": "user", "content": "How many days has a week?"}]


@pytest.fixture(scope="module")
def http(product):
    with httpx2.Client(base_url=product.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def llm(product):
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post_frame(http, **kwargs):
    return http.post("/v1/segment", files={"image": ("frame.jpg", FRAME.read_bytes(), "image/jpeg")}, **kwargs)


def finished(http, job):
    with http.stream("GET", f"/v1/jobs/{job}/events", timeout=WAIT_S) as events:
        *_, last = (json.loads(line[5:]) for line in events.iter_lines() if line.startswith("data:"))
    assert last["status"] in {"succeeded", "failed", "cancelled"}
    return last


def test_picture_comes_back_segmented_at_its_own_size(http):
    answer = post_frame(http).json()
    with Image.open(FRAME) as frame:
        assert (answer["width"], answer["height"]) == frame.size
    assert answer["empty"] is False
    assert 0 < answer["area_percent"] < 100


def test_default_chat_model_is_listed_first_and_answers(llm):
    model = llm.models.list().data[0]
    assert model.task == "chat"
    answer = llm.chat.completions.create(model=model.id, messages=QUESTION, max_tokens=12, temperature=0)
    assert "7" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_says_what_the_whole_answer_says(llm):
    model = llm.models.list().data[0].id
    whole = llm.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0)
    pieces = llm.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content


def test_tritonclient_over_http_and_grpc_gets_equal_logits(product):
    with triton_http.InferenceServerClient(f"127.0.0.1:{product.http}") as client:
        facts = client.get_model_metadata("pranet")
        assert client.is_server_ready()
        assert "pranet" in {model["name"] for model in client.get_model_repository_index()}
        name, out = facts["inputs"][0]["name"], facts["outputs"][0]["name"]
        tensor = np.random.default_rng(0).standard_normal((1, 3, 352, 352)).astype(np.float32)
        ask = triton_http.InferInput(name, list(tensor.shape), "FP32")
        ask.set_data_from_numpy(tensor)
        over_http = client.infer("pranet", [ask]).as_numpy(out)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{product.grpc}") as client:
        assert client.is_model_ready("pranet")
        ask = triton_grpc.InferInput(name, list(tensor.shape), "FP32")
        ask.set_data_from_numpy(tensor)
        over_grpc = client.infer("pranet", [ask]).as_numpy(out)
    assert over_http.shape[-2:] == (352, 352)
    np.testing.assert_allclose(over_http, over_grpc, atol=1e-5)


def test_job_answers_what_the_call_answers(http):
    direct = post_frame(http).json()
    accepted = post_frame(http, headers={"prefer": "respond-async"})
    assert accepted.status_code == 202
    job = accepted.json()["id"]
    assert accepted.headers["location"].endswith(f"/v1/jobs/{job}")
    assert finished(http, job)["status"] == "succeeded"
    later = http.get(f"/v1/jobs/{job}/result").json()
    assert later["mask"] == direct["mask"]


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


def test_what_is_only_read_is_routed_too(http):
    methods = http.get("/v1/longctx/methods").raise_for_status().json()
    assert {"dense", "duo", "dhsa"} <= {one["name"] for one in methods}
    assert http.get("/v1/longctx/methods/duo").raise_for_status().json()["knobs"]["properties"]["sink"]
    assert http.get("/v1/judge/templates").status_code == http.get("/v1/probe/models").status_code == 200


def test_models_pages_docs_and_metrics_are_there(http):
    assert {m["service"] for m in http.get("/v1/models").json()["data"]} >= {"medical-seg", "llm-longctx"}
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/livez", "/readyz"):
        assert http.get(path, headers={"accept": "*/*"}).status_code == 200, path
    assert "fovea_requests_total" in http.get("/metrics").text
