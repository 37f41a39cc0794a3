"""A service that says the right things without a model: what SDK, CLI and console are tried on, behind a real gateway.

`Stub` segments by drawing a soft disc, chats by repeating, and lists one model of a task that no page knows by name.
`Seeing` has the other tasks of pictures, too.
"""

import asyncio
import base64
import copy
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from fovea.api.arrays import ArrayBytes
from fovea.api.boxes import DetectIn, Detection, DetectOut
from fovea.api.classes import Candidate, Classified, ClassifyIn, ClassifyOut
from fovea.api.image import ImageBytes, Times, decode_base64
from fovea.api.mask import Component, SegmentIn, SegmentOut
from fovea.api.model import ModelEntry
from fovea.api.problem import PROBLEM_CONTENT_TYPE, openai_error, problem
from fovea.api.restore import Estimate, RestoreIn, RestoreOut, RestoreTimes
from fovea.api.text import ChatRequest
from fovea.errors import FoveaError, InvalidOption, Malformed, NotFound, QueueFull

PAPER = {"title": "A Paper about Discs", "venue": "CVPR", "year": 2021, "url": "https://example.org/discs"}
DICE = {"name": "dice_at_half", "ours": 0.8731, "paper": 0.912, "data": "60 held-out synthetic frames", "note": None}


class PatchIn(BaseModel):
    """Request of a stub classifier."""

    image: ImageBytes
    top_k: int = Field(3, ge=1, le=10, description="How many classes are named.")
    prompt: str | None = Field(None, description="Kind of object to find.")


class SinkIn(BaseModel):
    """One option of each kind."""

    prompt: str = Field(description="What to judge.")
    share: float = Field(0.25, ge=0, le=1)
    count: int = Field(3, ge=1, le=50)
    flag: bool = True
    mode: Literal["fast", "slow"] = "fast"
    forms: list[Literal["mask", "rle", "box"]] = ["mask"]
    names: list[str] = ["x", "y"]
    ids: list[int] | None = None
    where: dict[str, int] = {"x": 1}


def card(name: str, task: str, model: type[BaseModel], *, ready: bool = True, **facts: Any) -> dict[str, Any]:
    return {
        "id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fovea", "task": task,
        "service": "stub", "ready": ready, "name": name, "summary": f"Stands in for a model that can {task}.",
        "paper": PAPER, "licence": "Apache-2.0", "version": "1", "variants": [], "variant": None,
        "weights": "ab" * 32, "parameters": 1_234_567, "metrics": [], "limits": {"max_batch": 8, "max_side": None},
        "notes": [], "inputs": [], "outputs": [], "media_types": ["application/json"],
        "schema": model.model_json_schema(), "answer_schema": {}, **facts,
    }  # fmt: skip


CARDS = {
    entry["id"]: entry
    for entry in (
        card("parrot", "chat", ChatRequest, notes=["Repeats its input."], details={"methods": True}),
        card(
            "disc", "segment", SegmentIn, metrics=[DICE], media_types=["application/json", "image/png"],
            variants=["as-released", "as-described"], variant="as-released",
            notes=["Not a medical device.", "Draws discs."],
            inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, 3, 352, 352]}],
            outputs=[{"name": "logits", "datatype": "FP32", "shape": [-1, 1, 352, 352]}],
        ),
        card("disc-large", "segment", SegmentIn, ready=False, metrics=[{**DICE, "ours": None}]),
        card("patches/tiny", "classify", PatchIn),
        card("sink", "judge", SinkIn, service="stub"),
    )
}  # fmt: skip


class Stub:
    busy, long, token_s, wait_s, down = 0, 0, 0.01, 0.0, False

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.cards = copy.deepcopy(CARDS)
        self.app = FastAPI(exception_handlers={FoveaError: _refuse})
        for path, endpoint, methods in (
            ("/readyz", self.readyz, ["GET"]), ("/v1/models", self.models, ["GET"]),
            ("/v1/models/{name:path}/example", self.example, ["GET"]),
            ("/v1/models/{name:path}", self.model, ["GET"]), ("/v1/segment", self.segment, ["POST"]),
            ("/v1/classify", self.classify, ["POST"]), ("/v1/chat/completions", self.chat, ["POST"]),
            ("/v1/judge", self.judge, ["POST"]), ("/v1/longctx/methods", self.methods, ["GET"]),
            ("/v1/steering-vectors", self.steering_vectors, ["GET"]),
        ):  # fmt: skip
            self.app.add_api_route(path, endpoint, methods=methods, response_model=None)

    async def readyz(self) -> Response:
        return JSONResponse({"status": "not ready" if self.down else "ready"}, 503 if self.down else 200)

    async def methods(self) -> list[dict[str, Any]]:
        near = {"type": "integer", "default": 8, "description": "Words that are heard."}
        echo = {"type": "boolean", "default": False, "description": "Say it twice."}
        dense = {"name": "dense", "summary": "Hears all.", "phases": [], "knobs": {"properties": {}}}
        nearby = {"name": "nearby", "summary": "Hears the last words.", "help": "Hears the last words.\nNo more."}
        return [dense, {**nearby, "phases": ["prefill"], "knobs": {"properties": {"near": near, "echo": echo}}}]

    async def steering_vectors(self) -> dict[str, Any]:
        layer = {"layer": 3, "norm": 2.0, "activation_norm": 8.0, "separation": 0.9}
        facts = {"version": 1, "tokens": "mean", "positive": 2, "negative": 2, "layers": [layer]}
        models = {"louder@1": "parrot", "slower@1": "turtle"}
        return {"object": "list", "data": [{"id": name, "model": model, **facts} for name, model in models.items()]}

    async def models(self) -> dict[str, Any]:
        known = ModelEntry.model_fields.keys() | {"summary", "paper", "licence", "metrics", "variant", "notes"}
        data = [{key: value for key, value in entry.items() if key in known} for entry in self.cards.values()]
        return {"object": "list", "data": data}

    async def model(self, name: str) -> dict[str, Any]:
        if name not in self.cards:
            raise NotFound(f"There is no model {name!r}.", hint=f"Known are {', '.join(self.cards)}.")
        return self.cards[name]

    async def example(self, name: str) -> dict[str, Any]:
        if self.cards[name]["task"] == "chat":
            return {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
        return {"model": name, "image": base64.b64encode(photograph()).decode()}

    async def segment(self, request: Request) -> Response:
        options, data = await self._read(request)
        model = options.pop("model", None) or "disc"
        if isinstance(include := options.get("include"), str) and include.startswith("["):
            options["include"] = json.loads(include)
        try:
            asked = SegmentIn(image=data, **options)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidOption(f"{first['loc'][0]}: {first['msg']}.", field=str(first["loc"][0])) from error
        answer = segmented(asked, model)
        if "image/png" in request.headers.get("accept", ""):
            return Response(b"\x89PNG\r\n\x1a\n overlay", media_type="image/png")
        return JSONResponse(answer.model_dump(mode="json"))

    async def classify(self, request: Request) -> Response:
        options, data = await self._read(request)
        _opened(data)
        top = [{"class_name": name, "class_id": at, "probability": 0.6 / (at + 1)} for at, name in enumerate("abc")]
        return JSONResponse({"model": "patches/tiny", "top_k": top[: int(options.get("top_k", 3))], "options": options})

    async def judge(self, request: Request) -> Response:
        """The request as an answer of many shapes; the first `long` of them only as jobs."""
        if self.long > 0:
            self.long -= 1
            return Response("This takes long.", 413, {"x-fovea-wants": "respond-async"})
        body = await request.json()
        self.seen.append(body)
        picture = base64.b64encode(photograph(64, 48)).decode()
        rows = [{"label": 2, "why": "near"}, {"label": None, "why": "<b>far</b>"}]
        return JSONResponse({"asked": body, "score": 0.123456, "picture": picture, "rows": rows, "note": "<i>text</i>"})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        if not 0 <= body.get("temperature", 1.0) <= 2:
            error = InvalidOption("temperature: must be at most 2.", field="temperature")
            return JSONResponse(openai_error(error), 400)
        words = f"You said: {body['messages'][-1]['content']}".split(" ")
        words = words[: body.get("max_tokens") or len(words)]
        usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
        if method := (body.get("longctx") or {}).get("method"):
            usage["longctx"] = {"method": method, "kv_bytes": 2**20, "kv_bytes_dense": 2**22, "kv_ratio": 0.25}
        if body.get("stream"):
            return StreamingResponse(self._pieces(words, usage, body), media_type="text/event-stream")
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return JSONResponse(_completion("chat.completion", choices=[choice], usage=usage))

    async def _pieces(self, words: list[str], usage: dict[str, Any], body: dict[str, Any]) -> AsyncIterator[str]:
        await asyncio.sleep(self.wait_s)
        for place, word in enumerate(words):
            delta = {"role": "assistant"} if place == 0 else {}
            delta["content"] = word if place == 0 else f" {word}"
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            yield _event(_completion("chat.completion.chunk", choices=[choice]))
            await asyncio.sleep(self.token_s)
            if word == "break":
                yield _event({"error": {"message": "The replica was lost.", "type": "server_error", "code": "fault"}})
                return
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield _event(_completion("chat.completion.chunk", choices=[last]))
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event(_completion("chat.completion.chunk", choices=[], usage=usage))
        yield "data: [DONE]\n\n"

    async def note_form(self, request: Request) -> dict[str, str]:
        """Note the options of a form, and return them."""
        async with request.form() as form:
            asked = {name: value for name, value in form.items() if isinstance(value, str)}
        self.seen.append(asked)
        return asked

    async def _read(self, request: Request) -> tuple[dict[str, Any], bytes]:
        """Options and picture of a request in any form, as services read them."""
        if self.busy > 0:
            self.busy -= 1
            raise QueueFull("The queue is full.", hint="Try again.", retry_after=1)
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            async with request.form() as form:
                options = {name: value for name, value in form.items() if isinstance(value, str)}
                data = await form["image"].read()  # type: ignore[union-attr]
        elif kind.startswith("application/json"):
            options = await request.json()
            data = decode_base64(options.pop("image"))
        else:
            options, data = dict(request.query_params), await request.body()
        self.seen.append({"content_type": kind, "options": dict(options), "bytes": len(data)})
        return options, data


def photograph(width: int = 320, height: int = 240) -> bytes:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rim = np.hypot((x - 0.6 * width) / width, (y - 0.45 * height) / width)
    red = 190 - 90 * np.hypot(x / width - 0.5, y / height - 0.5) + 25 * (rim < 0.16)
    picture = np.stack([red, red * 0.52 + 20 * (rim < 0.16), red * 0.45], axis=-1)
    return _encoded(picture.clip(0, 255).astype(np.uint8), "JPEG", quality=90)


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise Malformed("The bytes are not a picture.", hint="Send PNG or JPEG.") from error


def _encoded(array: Any, form: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **how)
    return out.getvalue()


def _completion(kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": "parrot", **fields}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FoveaError)
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    body = problem(error, "stub-1").model_dump_json(exclude_none=True)
    return Response(body, error.status, headers, PROBLEM_CONTENT_TYPE)


def _components(area: int) -> list[Component]:
    """Two regions that share the area; the page lists its input."""
    boxes = ((10, 20, 60, 80), (100, 40, 140, 90))
    return [Component(box=box, area=area // 2, centre=(1.0, 2.0), probability=0.75) for box in boxes if area]


def segmented(asked: SegmentIn, model: str = "disc") -> SegmentOut:
    """A disc as the mask; the larger model's is larger."""
    picture = np.asarray(_opened(asked.image))
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = 0.2 if model == "disc-large" else 0.16
    probability = 1 / (1 + np.exp(24 * (np.hypot(x - 0.6 * width, y - 0.45 * height) / width - radius)))
    inside, overlay = probability >= asked.threshold, picture.copy()
    overlay[inside] = (0.55 * overlay[inside] + 0.45 * np.array([18, 214, 189])).astype(np.uint8)
    area = int(inside.sum())
    forms = {
        "mask": _encoded(inside.astype(np.uint8) * 255),
        "overlay": _encoded(overlay, "JPEG"),
        "probability": _encoded((probability * 255).round().astype(np.uint8)),
        "contours": [{"points": [(1, 1), (9, 1), (9, 9)], "hole": False}],
    }
    return SegmentOut(
        model=model, version="1", engine="onnx", width=width, height=height, empty=area == 0, area=area,
        area_percent=100 * area / inside.size, max_probability=float(probability.max()),
        mean_probability=float(probability[inside].mean()) if area else 0.0, components=_components(area),
        component_count=int(area > 0), times=Times(infer=3.5),
        warnings=["[Nothing] is this sure."] if asked.threshold > 0.98 else [],
        **{form: value for form, value in forms.items() if form in asked.include},
    )  # fmt: skip


FOUND = (
    ("crack", 0, (20, 20, 120, 60), 0.9), ("crack", 0, (150, 30, 200, 90), 0.6), ("hole", 1, (40, 90, 90, 130), 0.2),
)  # fmt: skip
FORMS = ["application/json", "image/png", "text/csv", "application/vnd.coco+json"]
BEFORE, AFTER = (200, 40, 40), (40, 40, 200)


def plain(colour: tuple[int, int, int], width: int = 320, height: int = 240) -> bytes:
    return _encoded(np.full((height, width, 3), colour, np.uint8))


def restored(**changed: Any) -> RestoreOut:
    facts = {
        "model": "pane", "version": "1", "engine": "onnx", "variant": "paper", "width": 320, "height": 240,
        "format": "png", "bit_depth": 8, "restored": plain(AFTER), "mean_change": 0.25, "times": RestoreTimes(),
        "estimate": Estimate(seconds=2.5, memory_mib=1234, tiles=6, tile_core=64, tile_context=128),
    }  # fmt: skip
    return RestoreOut(**{**facts, **changed})


class Matrices(BaseModel):
    """A request of a task without a page of its own."""

    model_config = ConfigDict(extra="forbid")

    features: ArrayBytes
    model: str | None = None
    semantics: ArrayBytes | None = None
    fps: float | None = None
    duration: float | None = None


class Seeing(Stub):
    """Classes by the place of a patch, boxes of a road, a restored picture, and one action in every video.

    The model `second` is less sure, and takes boots for shoes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fails: list[FoveaError] = []
        self.cards = {name: card(name, "detect", DetectIn, media_types=FORMS) for name in ("road", "slide")}
        self.cards |= {name: card(name, "classify", ClassifyIn) for name in ("first", "second")}
        self.cards |= {name: card(name, "actions", Matrices, media_types=FORMS[:2]) for name in ("bmn", "oat")}
        self.cards["pane"] = card("pane", "restore", RestoreIn, notes=["Takes reflections away."])
        for name in ("detect", "restore", "actions"):
            self.app.add_api_route(f"/v1/{name}", getattr(self, name), methods=["POST"], response_model=None)

    async def example(self, name: str) -> dict[str, object]:
        if self.cards[name]["task"] == "actions":
            return {"model": None, "features": [[0.5, 1.0]], "semantics": None, "fps": None, "duration": 8}
        picture = plain(BEFORE) if name == "pane" else plain((90, 90, 90), 240, 160)
        return {"model": None, "image": base64.b64encode(picture).decode()}

    async def classify(self, request: Request) -> Response:
        asked = await self.note_form(request)
        names = ["boot", "dress", "hat", "shoe"]
        sure, turn = (0.8, 0) if asked["model"] == "first" else (0.6, 3)
        sides, results = 2 if "tile" in asked else 1, []
        for place in range(sides * sides):
            order = names[(place + turn) % 4 :] + names[: (place + turn) % 4]
            row, column = divmod(place, sides)
            top = [
                Candidate(label=name, class_id=names.index(name), probability=sure / 2**at)
                for at, name in enumerate(order[:3])
            ]
            box = (column * 160, row * 120, column * 160 + 320 // sides, row * 120 + 240 // sides)
            results.append(Classified(**top[0].model_dump(), box=box, top=top))
        if request.headers["accept"].startswith("image/"):
            return Response(f"a file of {request.headers['accept']}".encode(), media_type="image/jpeg")
        answer = ClassifyOut(
            model=asked["model"], version="1", engine="onnx", width=320, height=240, rows=sides, columns=sides,
            results=results, counts={one.label: 1 for one in results}, times=Times(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))

    async def detect(self, request: Request) -> Response:
        """The boxes that score more than was asked for, or a file that names its form."""
        asked = await self.note_form(request)
        if "coco" in (accept := request.headers["accept"]):
            return JSONResponse({"categories": [{"id": at, "name": name} for at, name in enumerate(("crack", "hole"))]})
        if not accept.startswith((FORMS[0], "*/*")):
            return Response(f"a file of {accept}".encode(), media_type=accept)
        found = [
            Detection(box=box, score=score, label=label, class_id=kind, area=1.0, radius=12.5)
            for label, kind, box, score in FOUND
            if score > float(asked.get("confidence", 0.25)) and not (asked["model"] == "slide" and label == "hole")
        ]
        answer = DetectOut(
            model=asked["model"], version="1", engine="onnx", width=240, height=160, detections=found,
            counts=Counter(one.label for one in found), times=Times(),
        )  # fmt: skip
        return JSONResponse(answer.model_dump(mode="json"))

    async def restore(self, request: Request) -> JSONResponse:
        if self.fails:
            raise self.fails.pop()
        asked = await self.note_form(request)
        changed = {"restored": None} if asked.get("dry_run") == "true" else {}
        return JSONResponse(restored(**changed).model_dump(mode="json"))

    async def actions(self, request: Request) -> Response:
        asked = await request.json()
        self.seen.append({"accept": request.headers["accept"], **asked})
        Matrices.model_validate(asked)
        if request.headers["accept"] == "image/png":
            return Response(photograph(64, 48), media_type="image/jpeg")
        top = [{"label": "run", "score": 0.5}, {"label": "jump", "score": 0.25}]
        return JSONResponse({"model": asked["model"], "proposals": [{"start": 1.0, "end": 2.5, "top": top}]})
