"""The pages: what each needs to know, and which template draws it. Knows no model, no upstream and no job.

A reader without a good key gets the page that asks for one; every other refusal is a page that says what to try.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from services.gateway.console import model_view
from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.schema_forms import Field, build_fields
from services.gateway.console.snippets import build_snippets, task_path
from shared.api.model import ModelEntry
from shared.errors import FoveaError, InvalidOption

__all__ = ["ASSETS", "Console"]

ASSETS = "/console/static"
"""Where style sheets, modules and icons are served."""

_HERE = Path(__file__).parent
_SHEETS = (
    "tokens.css",
    "page.css",
    "controls.css",
    "models.css",
    "bench.css",
    "answers.css",
    "sessions.css",
    "judge.css",
    "probe.css",
)
_NAVIGATION = (
    ("models", "/", "models"),
    ("segment", "/console/segment", "segment"),
    ("detect", "/console/detect", "detect"),
    ("chat", "/console/chat", "chat"),
    ("judge", "/console/judge", "judge"),
    ("probe", "/console/probe", "probe"),
    ("jobs", "/console/jobs", "jobs"),
)
_STARTERS = ("What is attention, in two sentences?", "Write a haiku about retinas.", "Name three uses of a mask.")

_OWN_CONTROLS = {
    "chat": frozenset(
        {
            "model",
            "messages",
            "stream",
            "stream_options",
            "n",
            "user",
            "tools",
            "tool_choice",
            "strict",
            "logprobs",
            "top_logprobs",
            "logit_bias",
            "response_format",
            "max_completion_tokens",
            "session_id",
            "document_id",
        }
    ),
    "segment": frozenset({"model", "image", "include", "threshold"}),
    "detect": frozenset({"model", "image", "include", "confidence", "iou", "labels", "stroke"}),
    "restore": frozenset({"model", "image", "include", "picture"}),
}
"""Options of a request that a page asks for in its own way, or that make no sense on it."""

_DOWNLOADS = (
    ("Picture", "image/png", "boxes.png"),
    ("CSV", "text/csv", "csv"),
    ("COCO", "application/vnd.coco+json", "coco.json"),
    ("YOLO", "text/plain", "txt"),
    ("Crops", "application/zip", "crops.zip"),
    ("JSON", "application/json", "json"),
)
"""Forms in which boxes can be kept: name, media type, ending of the file."""

_BUDGET = frozenset({"plan", "kv_ratio"})
"""What a request may say about memory, whatever its attention method."""

_FIRST = ("max_tokens", "temperature", "top_p", "seed")
"""Options that are looked for first, wherever the schema has them."""

_Page = Callable[[Request], Awaitable[Response]]


class Console:
    """The pages of one gateway.

    Args:
        asker: How pages learn what is served.
        keys: Whether callers need an API key, which snippets then show.
    """

    def __init__(self, asker: InProcessClient, *, keys: bool) -> None:
        self._asker, self._keys = asker, keys
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.ChainableUndefined,
        )
        self._templates.filters["prose"] = _prose
        self._templates.globals.update(asset=lambda name: f"{ASSETS}/{name}", sheets=_SHEETS, navigation=_NAVIGATION)

    def routes(self) -> list[Route | Mount]:
        """The routes of all pages and of what they load."""
        pages: dict[str, _Page] = {
            "/": self.home,
            "/console/segment": self.segment,
            "/console/detect": self.detect,
            "/console/restore": self.restore,
            "/console/chat": self.chat,
            "/console/sessions": self.sessions,
            "/console/judge": self.judge,
            "/console/probe": self.probe,
            "/console/jobs": self.jobs,
            "/console/run/{task}": self.run,
            "/console/models/{name:path}": self.card,
        }
        found: list[Route | Mount] = [Route(path, self._guarded(page)) for path, page in pages.items()]
        return [*found, Mount(ASSETS, StaticFiles(directory=_HERE / "static"))]

    async def home(self, request: Request) -> Response:
        """All services and models."""
        entries = await self._asker.models(request)
        counts = {"all": len(entries), "ready": sum(entry.ready for entry in entries)}
        tasks = {entry.task for entry in entries}
        return self._draw(
            "home.html",
            request,
            page="models",
            services=model_view.group_by_service(entries),
            counts=counts,
            tasks=tasks,
        )

    async def segment(self, request: Request) -> Response:
        """A picture and its mask."""
        return await self._bench(request, "segment", "segment.html", page="segment")

    async def detect(self, request: Request) -> Response:
        """A picture and the boxes in it."""
        return await self._bench(request, "detect", "detect.html", page="detect")

    async def restore(self, request: Request) -> Response:
        """A picture before and after."""
        return await self._bench(request, "restore", "restore.html", page="models")

    async def chat(self, request: Request) -> Response:
        """A conversation; the default model may be asked anything, others what they are made for."""
        models = [entry for entry in await self._asker.models(request) if entry.task == "chat"]
        chosen = _chosen(models, request.query_params.get("model"))
        example = await self._asker.example(request, chosen.id) if chosen and chosen != models[0] else {}
        card = await self._asker.card(request, chosen.id) if chosen else {}
        methods = _methods(card, await self._asker.methods(request)) if _takes_methods(card) else []
        starters = _starters(example)
        return await self._bench(request, "chat", "chat.html", page="chat", starters=starters, methods=methods)

    async def sessions(self, request: Request) -> Response:
        """What models remember for the reader; the browser fetches it, the question checks the key."""
        models = [entry for entry in await self._asker.models(request) if entry.task == "chat"]
        return self._draw("sessions.html", request, page="chat", models=models)

    async def judge(self, request: Request) -> Response:
        """Relevance labels: pairs, batches, and what is computed from them."""
        models = [entry.id for entry in await self._asker.models(request) if entry.task == "judge"]
        templates = await self._asker.templates(request) if models else []
        return self._draw("judge.html", request, page="judge", models=models, templates=templates)

    async def probe(self, request: Request) -> Response:
        """Experiments on language models; a permalink holds the spec that fills the form."""
        return await self._bench(request, "probe", "probe.html", page="probe", given=_given(request))

    async def run(self, request: Request) -> Response:
        """Any other task."""
        return await self._bench(request, request.path_params["task"], "run.html", page="models")

    async def jobs(self, request: Request) -> Response:
        """The reader's jobs; the browser fetches them, the question only checks the key."""
        await self._asker.models(request)
        return self._draw("jobs.html", request, page="jobs", origin=_origin(request))

    async def card(self, request: Request) -> Response:
        """One model."""
        card = await self._asker.card(request, request.path_params["name"])
        options = [
            {
                "name": f.name,
                "shown": f.shown,
                "help": f.help,
                "required": f.required,
                "type_words": model_view.describe_type(f),
            }
            for f in build_fields(card.get("schema") or {})
        ]
        return self._draw(
            "card.html",
            request,
            page="models",
            card=model_view.describe_model(card),
            options=options,
            facts=list(model_view.list_facts(card)),
            snippets=build_snippets(card, _origin(request), keys=self._keys),
        )

    async def _bench(
        self,
        request: Request,
        task: str,
        template: str,
        page: str,
        *,
        given: dict[str, Any] | None = None,
        starters: Sequence[str] = (),
        methods: Sequence[dict[str, Any]] = (),
    ) -> Response:
        entries = await self._asker.models(request)
        models = [entry for entry in entries if entry.task == task]
        chosen = _chosen(models, request.query_params.get("model"))
        card = await self._asker.card(request, chosen.id) if chosen else None
        return self._draw(
            template,
            request,
            page=page,
            task=task,
            path=task_path(task),
            models=models,
            chosen=card,
            given=given,
            starters=starters,
            methods=methods,
            options=_options(card, task, given) if card else [],
            threshold=_default(card or {}, "threshold", 0.5),
            confidence=_default(card or {}, "confidence", 0.25),
            iou=_default(card or {}, "iou", 0.45),
            relatives=model_view.list_sibling_tasks(entries, chosen.service) if chosen else [],
            downloads=_downloads(card or {}),
        )

    def _guarded(self, page: _Page) -> _Page:
        async def guarded(request: Request) -> Response:
            try:
                return await page(request)
            except FoveaError as error:
                template = "locked.html" if error.status == 401 else "problem.html"
                return self._draw(template, request, status=error.status, page="", error=error)

        return guarded

    def _draw(self, template: str, request: Request, *, status: int = 200, **facts: Any) -> HTMLResponse:
        text = self._templates.get_template(template).render(request=request, **facts)
        return HTMLResponse(text, status, {"cache-control": "no-store"})


def _chosen(models: list[ModelEntry], name: str | None) -> ModelEntry | None:
    """The model asked for, else the first that is ready, else the first."""
    return next(
        (entry for entry in models if entry.id == name),
        next((entry for entry in models if entry.ready), models[0] if models else None),
    )


def _starters(example: dict[str, Any]) -> tuple[str, ...]:
    """What a model that may know one task only can be asked: its example; anything where that says nothing."""
    said = [message.get("content") for message in example.get("messages") or () if isinstance(message, dict)]
    texts = [content for content in said if isinstance(content, str)]
    return (" ".join(texts),) if texts else _STARTERS


def _options(card: dict[str, Any], task: str, given: dict[str, Any] | None = None) -> list[Field]:
    without = _OWN_CONTROLS.get(task, frozenset({"model"})) | ({"longctx"} if _takes_methods(card) else set())
    found = build_fields(card.get("schema") or {}, without=without, values=given)
    return sorted(
        found, key=lambda field: (not field.required, _FIRST.index(field.name) if field.name in _FIRST else 99)
    )


def _takes_methods(card: dict[str, Any]) -> bool:
    return bool((card.get("details") or {}).get("methods"))


def _methods(card: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Attention methods with a form each: the budget, as the request's schema has it, and the method's knobs."""
    root = card.get("schema") or {}
    options = root.get("$defs", {}).get("LongctxOptions", {})
    other = frozenset(options.get("properties", {})) - _BUDGET
    budget = build_fields({**options, "$defs": root.get("$defs", {})}, without=other)
    return [
        {"name": one["name"], "summary": one["summary"], "fields": [*build_fields(one["knobs"]), *budget]}
        for one in found
    ]


def _downloads(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [form for form in _DOWNLOADS if form[1] in (card.get("media_types") or ())]


def _given(request: Request) -> dict[str, Any]:
    """The spec that a permalink holds; one that is no object is refused.

    Raises:
        InvalidOption: It is not JSON, or no object.
    """
    try:
        found = json.loads(request.query_params.get("spec") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidOption("The permalink's spec is no JSON object.", hint="Open the page without it.", field="spec")
    return found


def _default(card: dict[str, Any], option: str, otherwise: float) -> Any:
    return (card.get("schema") or {}).get("properties", {}).get(option, {}).get("default", otherwise)


def _prose(text: str) -> Markup:
    """Text in which `backticks` mark code, as descriptions write it."""
    parts = str(text).split("`")
    return Markup("").join(  # every part is escaped
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def _origin(request: Request) -> str:
    return str(request.base_url).rstrip("/")
