"""Requests for the examples of the API reference: every operation once, in an order in which each finds its data."""

import base64
import io
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from tests.reference.recorder import Recorder

MEMORY = "fovea-titans-mac"
QUERY = "what causes ocean tides"
PASSAGES = {
    "tides-1": "The moon's gravity stretches the oceans into two bulges, and coasts see high water about twice a day.",
    "tides-2": "Bees make honey from the nectar of flowers.",
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
IMAGES = ("image", "reference")


def ask_everything(r: Recorder, only: Sequence[str] = ()) -> None:
    """Ask every operation, or those of some parts, for example `judges`."""
    for name, part in PARTS.items():
        if not only or name in only:
            part(r)


def ask_about_models(r: Recorder) -> None:
    for path in ("/livez", "/readyz", "/health", "/ping", "/version", "/metrics", "/metrics/services"):
        r.ask(f"GET {path}")
    r.ask("GET /v1/models", query={"task": "segment"})
    for path, name in (("", "pranet"), ("/example", "fovea-planner"), ("/sparsity", "patnet")):
        r.ask(f"GET /v1/models/{{name}}{path}", name=name)
    for path in ("", "/health/live", "/health/ready", "/models/stats"):
        r.ask(f"GET /v2{path}")
    r.ask("POST /v2/repository/index", {"ready": True})
    for path in ("", "/ready", "/config", "/stats"):
        r.ask(f"GET /v2/models/{{name}}{path}", name="pranet")
    zeros = {"name": "images", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0] * (3 * 32 * 32)}
    r.ask("POST /v2/models/{name}/infer", {"inputs": [zeros]}, name="yolo9tr")
    for action in ("unload", "load"):
        r.ask(f"POST /v2/repository/models/{{name}}/{action}", name="bmn")


def ask_adapters(r: Recorder) -> None:
    """An adapter of rank 1 on the values of SmolLM2's first layer; loading needs a folder of the server."""
    name, layer = "house-style", "base_model.model.model.layers.0.self_attn.v_proj"
    sides = {"A": np.zeros((1, 576), np.float16), "B": np.zeros((192, 1), np.float16)}
    weights = save({f"{layer}.lora_{side}.weight": matrix for side, matrix in sides.items()})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["v_proj"]}
    adapter = {"name": name, "config": config, "weights": base64.b64encode(weights).decode()}
    r.ask("POST /v1/lora-adapters", adapter)
    r.ask("GET /v1/lora-adapters")
    r.ask("DELETE /v1/lora-adapters/{name}", name=name)
    for verb, body in (("load", {"lora_name": name, "lora_path": name}), ("unload", {"lora_name": name})):
        answer = f"Success: LoRA adapter '{name}' {'added' if verb == 'load' else 'removed'} successfully."
        example = {"type": "application/json", "request": body, "status": "200", "answer": answer}
        r.write_down(f"POST /v1/{verb}_lora_adapter", {"parameters": {}, **example, "answer_type": "text/plain"})


def ask_images(r: Recorder) -> None:
    for task, model in (
        ("segment", "pranet"), ("detect", "yolo9tr"), ("classify", "patnet"), ("restore", "rrformer"),
        ("actions", "bmn"), ("plan", "fovea-planner"), ("scanpath", "oat"),
    ):  # fmt: skip
        example = {k: shrink(v, 320) if k in IMAGES else v for k, v in r.example(model).items()}
        r.ask(f"POST /v1/{task}", {"model": model, **example})


def ask_texts(r: Recorder) -> None:
    r.ask("POST /v1/chat/completions", {"messages": QUESTION, "max_tokens": 24, "temperature": 0})
    r.ask("POST /v1/completions", {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0})
    message = {"model": "smollm2-135m-instruct", "messages": QUESTION}
    r.ask("POST /v1/messages", {**message, "max_tokens": 24, "temperature": 0})
    r.ask("POST /v1/messages/count_tokens", message)
    tokens = r.ask("POST /tokenize", {"prompt": "What is attention?"})["tokens"]
    r.ask("POST /detokenize", {"tokens": tokens})
    r.ask("GET /tokenizer_info")
    stored = {"input": QUESTION[0]["content"], "max_output_tokens": 24, "temperature": 0, "store": True}
    made = r.ask("POST /v1/responses", stored)["id"]
    r.ask("GET /v1/responses/{response_id}", response_id=made)
    r.ask("GET /v1/responses/{response_id}/input_items", response_id=made)
    r.ask("DELETE /v1/responses/{response_id}", response_id=made)
    for path in ("/v1/embeddings", "/v1/embed"):
        r.ask(f"POST {path}", {"input": ["a polyp in the colon"]})
    r.ask("POST /v1/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"})


def ask_long_contexts(r: Recorder) -> None:
    r.ask("GET /v1/longctx/methods")
    r.ask("GET /v1/longctx/methods/{name}", name="snapkv")
    r.ask("GET /v1/longctx/methods/{name}/sparsity", name="snapkv")
    r.ask("GET /v1/longctx/ruler/tasks")
    method = {"method": "streamingllm", "ratio": 0.5}
    few = {"longctx": method, "lengths": [256]}
    r.ask("POST /v1/longctx/needle", {**few, "depths": [50], "steps": 8})
    r.ask("POST /v1/longctx/fidelity", {**few, "steps": 8})
    tasks = {"tasks": ["niah_single_1"], "n": 1, "lengths": [512], "max_answer": 4, "budgets": [0.5]}
    r.ask("POST /v1/longctx/ruler", {"methods": [method], **tasks})
    words = {"name": "colours", "text": "the ant red and the bee blue of the cow green"}
    document = r.ask("POST /v1/documents", words)["id"]
    r.ask("GET /v1/documents")
    r.ask("GET /v1/documents/{document_id}", document_id=document)
    r.ask("DELETE /v1/documents/{document_id}", document_id=document)
    ask_sessions(r)
    ask_adapters(r)
    steering = {"name": "cheerful", "positive": ["I love this day."], "negative": ["I hate this day."], "layers": [12]}
    r.ask("POST /v1/steering-vectors", steering)
    r.ask("GET /v1/steering-vectors")
    r.ask("GET /v1/steering-vectors/{name}", name="cheerful")
    sweep = {"prompt": "The capital of France is", "source": "The capital of Italy is", "tokens": [" Paris", " Rome"]}
    r.ask("POST /v1/sweeps", {**sweep, "layers": [12], "positions": [-2, -1]})
    long = {"prompt": "The tide comes in. " * 40, "max_tokens": 1}
    capture = [{"type": "activation", "site": "resid_post.12", "positions": "all"}]
    answer = r.client.post("/v1/completions", json={**long, "capture": capture}).raise_for_status().json()
    capture_id = answer["choices"][0]["captured"][0]["url"].rpartition("/")[2]
    r.ask("GET /v1/captures/{capture_id}", capture_id=capture_id)
    r.ask("DELETE /v1/captures/{capture_id}", capture_id=capture_id)
    r.ask("DELETE /v1/steering-vectors/{name}", name="cheerful")
    clean, corrupt = "When Mary and John met, John gave a drink to", "When Mary and John met, Mary gave a drink to"
    grid = {"site": "resid_pre", "layers": [4, 26], "positions": [6, -1]}
    r.ask("POST /v1/sweeps", {"prompt": corrupt, "source": clean, "tokens": [" Mary", " John"], **grid})


def ask_sessions(r: Recorder) -> None:
    session = r.ask("POST /v1/sessions", {"model": MEMORY})["id"]
    body = {**r.example(MEMORY), "model": MEMORY, "session_id": session}
    for _ in range(2):
        r.client.post("/v1/chat/completions", json=body).raise_for_status()
    r.ask("GET /v1/sessions")
    r.ask("GET /v1/sessions/{session_id}", session_id=session)
    r.ask("GET /v1/sessions/{session_id}/surprise", session_id=session)
    r.ask("POST /v1/sessions/{session_id}/fork", session_id=session)
    state = r.ask("GET /v1/sessions/{session_id}/export", session_id=session)
    r.ask("POST /v1/sessions/{session_id}/export", session_id=session)
    raw = ("application/octet-stream", "session.bin", state)
    r.ask("POST /v1/sessions/{session_id}/import", raw=raw, session_id=session)
    r.ask("POST /v1/sessions/{session_id}/rollback", {"version": 1}, session_id=session)
    r.ask("DELETE /v1/sessions/{session_id}", session_id=session)


def ask_judges(r: Recorder) -> None:
    whole = r.client.get("/v1/judge/collection").json()
    r.ask("GET /v1/judge/collection")
    topics = "\n".join(whole["topics"].splitlines()[:4])
    passages = "\n".join(whole["passages"].splitlines()[:32])
    qrels, judge = labels(whole["qrels"]), whole["judgements"]["overlap"]
    judge = "\n".join(line for line in judge.splitlines() if json.loads(line)["qid"] in "1234")
    runs, second = labels(whole["runs"]), labels(whole["second"])
    compared = {"reference": qrels, "judge": judge}
    r.ask("POST /v1/judge", {"pairs": [{"query": QUERY, "passage": PASSAGES["tides-1"]}]})
    r.ask("POST /v1/judge/agreement", compared)
    trust = {**compared, "topics": topics, "passages": passages, "embedding": False, "draws": 100}
    r.ask("POST /v1/judge/trust", trust)
    r.ask("POST /v1/judge/rankings", {**compared, "runs": runs})
    r.ask("POST /v1/judge/significance", {"labels": qrels, "runs": runs, "draws": 1000})
    human = "\n".join(line for line in qrels.splitlines() if line[0] in "123")
    ppi = {"human": human, "judge": judge, "runs": runs}
    r.ask("POST /v1/judge/corrected", ppi)
    r.ask("POST /v1/judge/budget", {**ppi, "half_width": 0.05})
    r.ask("POST /v1/judge/ensembles", {"judges": [qrels, judge], "combine": "median"})
    r.ask("POST /v1/judge/ensembles/weights", {"reference": qrels, "judges": {"overlap": judge, "second": second}})
    facts = r.ask("POST /v1/judge/nuggets", {"query": QUERY, "how": "similarity", "passages": PASSAGES})["nuggets"]
    answer = "The moon's gravity causes the tides [tides-1]."
    about = {"query": QUERY, "how": "similarity", "answer": answer}
    r.ask("POST /v1/judge/nuggets/assign", {**about, "nuggets": facts})
    r.ask("POST /v1/judge/support", {**about, "passages": PASSAGES})
    first, other = PASSAGES.values()
    pair = {"query": QUERY, "first": first, "second": other, "label": 1}
    r.ask("POST /v1/judge/preferences", {"comparisons": [pair]})
    board = {"name": "example", "reference": qrels, "judges": [{"judge": "overlap", "labels": judge}]}
    r.ask("POST /v1/judge/leaderboard", board)
    r.ask("GET /v1/judge/leaderboard", query={"name": "example"})
    r.ask("GET /v1/judge/templates")
    r.ask("GET /v1/judge/templates/{name}", name="query-lift")
    r.ask("POST /v1/judge/templates/{name}/render", {"query": QUERY, "passage": first}, name="aspects")
    signals = [0.1, 0.3, 0.4, 0.7, 0.2, 0.6, 0.8, 0.9]
    fit = {"signals": signals, "grades": [0, 1, 1, 3, 0, 2, 2, 3], "queries": list("aaaabbbb"), "name": "example"}
    r.ask("POST /v1/judge/calibrations", fit)
    r.ask("GET /v1/judge/calibrations")
    r.ask("GET /v1/judge/calibrations/{name}", name="example")
    pairs = [{"qid": "3", "docid": n, "query": QUERY, "passage": text} for n, text in PASSAGES.items()]
    batch = {"model": "word-overlap", "pairs": "\n".join(map(json.dumps, pairs))}
    made = r.ask("POST /v1/judge/batches", batch)["id"]
    r.ask("GET /v1/judge/batches")
    r.ask("GET /v1/judge/batches/{name}", name=made)
    document = ".I 1\n.T\nTides\n.W\nThe moon's gravity causes tides.\n.I 2\n.T\nBees\n.W\nBees make honey.\n"
    collection = {"documents": document, "topics": f".I 1\n.W\n{QUERY}\n", "relevance": "1 1 1\n"}
    r.ask("POST /v1/judge/collection", collection)
    r.ask("GET /v1/judge/backends")
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        r.ask(f"POST {path}", {"query": QUERY, "documents": [other, first], "top_n": 1})
    for path in ("/score", "/v1/score"):
        r.ask(f"POST {path}", {"text_1": QUERY, "text_2": [first, other]})


def ask_probes(r: Recorder) -> None:
    r.ask("GET /v1/probe/models")
    host = r.apps["interpretability"].state.host
    for name in host.names():
        r.ask(f"POST /v1/probe/{host.servable_type(name).route}", r.example(name))
    r.ask("POST /v1/probe", {**r.example("logit-lens"), "model": "logit-lens"})
    circuit = r.client.post("/v1/probe", json={"model": "circuits", **r.example("circuits")}).json()
    key = circuit["manifest"]["report"]
    r.ask("GET /v1/probe/reports/{key}", key=key)
    r.ask("POST /v1/probe/circuits/compare", {"first": key, "second": key})
    heads = r.client.post("/v1/probe", json={"model": "retrieval-heads", **r.example("retrieval-heads")}).json()
    artefact = next(one for one in heads["artefacts"] if one["name"].endswith(".json"))
    r.ask("GET /v1/probe/artefacts/{sha256}", sha256=artefact["sha256"])


def ask_background(r: Recorder) -> None:
    body = {"model": "fovea-planner", **r.example("fovea-planner")}
    queued = r.client.post("/v1/plan", json=body, headers={"prefer": "respond-async"}).json()["id"]
    r.ask("GET /v1/jobs/{job_id}/events", job_id=queued)
    r.ask("GET /v1/jobs/{job_id}", job_id=queued)
    r.ask("GET /v1/jobs/{job_id}/result", job_id=queued)
    r.ask("GET /v1/jobs", query={"limit": 2})
    slow = {"query": QUERY, "passages": {str(n): PASSAGES["tides-1"] for n in range(50)}}
    slow_id = r.client.post("/v1/judge/nuggets", json=slow, headers={"prefer": "respond-async"}).json()["id"]
    for label in ("POST /v1/jobs/{job_id}/cancel", "POST /v1/jobs/{job_id}/retry"):
        r.ask(label, job_id=slow_id)
    r.client.post(f"/v1/jobs/{slow_id}/cancel")
    r.ask("DELETE /v1/jobs/{job_id}", job_id=queued)
    prompt = {"prompt": "Two plus", "max_tokens": 2}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": prompt}
    lines = ("requests.jsonl", json.dumps(line).encode())
    file = r.ask("POST /v1/files", {"purpose": "batch"}, files=[("file", lines)])["id"]
    r.ask("GET /v1/files")
    r.ask("GET /v1/files/{file_id}", file_id=file)
    r.ask("GET /v1/files/{file_id}/content", file_id=file)
    made = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = r.ask("POST /v1/batches", made)["id"]
    r.ask("GET /v1/batches")
    r.ask("GET /v1/batches/{batch_id}", batch_id=batch)
    r.ask("POST /v1/batches/{batch_id}/cancel", batch_id=batch)
    r.ask("DELETE /v1/files/{file_id}", file_id=file)


def ask_studies(r: Recorder) -> None:
    from plugins.dicom.tests.test_dicom_routes import endoscopy

    film = ("endoscopy.dcm", endoscopy())
    query = {"include": "segmentation,masks"}
    found = r.ask("POST /v1/segment/dicom", files=[("files", film)], query=query)
    (series,) = found["series"]
    instance = series["instances"][0]
    mask = (f"{instance['instance']}.1.png", base64.b64decode(instance["frames"][0]["mask"]))
    picture = Image.open(io.BytesIO(mask[1])).rotate(90)
    out = io.BytesIO()
    picture.save(out, "PNG")
    saved = ("segmentation.dcm", base64.b64decode(series["segmentation"]))
    parts = [("files", film), ("segmentation", saved), ("corrected", (mask[0], out.getvalue()))]
    r.ask("POST /v1/segment/dicom/corrections", {"creator": "Doe"}, files=parts)
    r.ask("POST /v1/segment/dicom/pictures", files=[("files", film)])
    uid = "1.2.826.0.1.3680043.8.498.1"
    study = {"study": uid, "date": "20260102", "modalities": ["ES"], "series": 1, "instances": 12}
    r.write_down("GET /v1/dicomweb/studies", {"parameters": {"limit": 10}, "status": "200", "answer": [study]})
    stored = {"type": "multipart/related", "request": "@study.multipart", "status": "200", "answer": {}}
    r.write_down("POST /v1/dicomweb/studies", stored)


def ask_surveys(r: Recorder) -> None:
    import cv2

    from plugins.survey.tests.test_survey import PAVEMENT, photograph

    photographs = [("images", (f"{n}.jpg", photograph(50 + n * 4e-4, 8, n))) for n in range(2)]
    r.ask("POST /v1/detect/survey", files=photographs)
    folder = tempfile.TemporaryDirectory()
    picture, file = cv2.imread(str(PAVEMENT)), Path(folder.name) / "drive.mp4"
    film = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (picture.shape[1], picture.shape[0]))
    for _ in itertools.repeat(None, 2):
        film.write(picture)
    film.release()
    raw = ("video/mp4", "drive.mp4", file.read_bytes())
    folder.cleanup()
    r.ask("POST /v1/detect/stream", raw=raw, query={"every": 1}, accept="application/x-ndjson")


def administer(r: Recorder) -> None:
    key = r.ask("POST /v1/admin/keys", {"tenant": "clinic", "scopes": ["infer"], "rate_per_minute": 60})["id"]
    r.ask("GET /v1/admin/keys", query={"tenant": "clinic"})
    r.ask("PATCH /v1/admin/keys/{key_id}", {"rate_per_minute": 120}, key_id=key)
    new = r.ask("POST /v1/admin/keys/{key_id}/rotate", {"overlap_hours": 24}, key_id=key)["id"]
    r.ask("DELETE /v1/admin/keys/{key_id}", key_id=new)
    for path in ("usage", "usage/limits", *(f"admin/{name}" for name in ("tenants", "replicas", "audit", "traffic"))):
        r.ask(f"GET /v1/{path}")
    r.ask("PUT /v1/admin/traffic/{service}", {"percent": {"v1": 100}}, service="detection")
    r.ask("DELETE /v1/admin/traffic/{service}", service="detection")


def labels(lines: str) -> str:
    """Lines of the first four topics."""
    return "\n".join(line for line in lines.splitlines() if line.split()[0] in {"1", "2", "3", "4"})


def shrink(picture: str, side: int) -> str:
    """A picture in base64, made small enough for a page."""
    image: Any = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=60)
    return base64.b64encode(out.getvalue()).decode()


PARTS = {
    "models": ask_about_models, "images": ask_images, "texts": ask_texts, "long_contexts": ask_long_contexts,
    "judges": ask_judges, "probes": ask_probes, "background": ask_background, "studies": ask_studies,
    "surveys": ask_surveys, "administration": administer,
}  # fmt: skip
