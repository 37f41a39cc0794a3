"""Pages of the console, those of plug-ins too: the data that each needs, and the template that renders it.

A reader without a valid key gets the page that asks for one; every other error is a page that says what to try.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from fovea import plugins
from fovea.api.model import ModelEntry, title_task
from fovea.endpoints import pick_default_model, task_path
from fovea.errors import FoveaError, InvalidOption, NotFound, PermissionDenied
from services.gateway.console import model_view, task_options
from services.gateway.console.gateway_client import InProcessClient
from services.gateway.console.navigation import build_navigation, find_page
from services.gateway.console.page import GALLERY, STATIC, Page
from services.gateway.console.schema_forms import build_fields
from services.gateway.console.snippets import build_snippets
from services.gateway.console.static_files import COMPRESSION, build_static_routes

_FOLDER = Path(__file__).parent
_STYLE_SHEETS = (
    "tokens.css", "page.css", "frame.css", "controls.css", "models.css", "gallery.css", "bench.css", "pictures.css",
    "chat.css", "result_view.css", "judge.css", "probe.css", "steering.css", "runs.css",
)  # fmt: skip

_PICTURE_TASKS = ("segment", "detect", "restore", "classify")
"""Tasks whose pages show a picture; nothing else is special about them here."""

_THEMES = ("light", "dark")
"""Themes that a reader can choose, besides the system's; the cookie is set by `frame.js`."""

_Handler = Callable[[Request], Awaitable[Response]]


class Console:
    """The pages of one gateway, with what `client` fetches.

    Code snippets show an API key if callers need `keys`; pages check `max_body_bytes` before they send a request;
    readers can sign in at an identity provider if `signs_in`.
    """

    def __init__(self, client: InProcessClient, *, keys: bool, max_body_bytes: int, signs_in: bool = False) -> None:
        self._client, self._keys, self._signs_in = client, keys, signs_in
        self._plugins: dict[str, Page] = plugins.load_all("fovea.pages", kind=Page, working=True)
        added = {slug: jinja2.FileSystemLoader(page.folder) for slug, page in self._plugins.items()}
        self._templates = jinja2.Environment(
            loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(_FOLDER / "templates"), jinja2.PrefixLoader(added)]),
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined,
        )  # fmt: skip
        self._templates.filters["prose"] = _render_code_marks
        folders = {f"plugins/{slug}": page.folder / "static" for slug, page in self._plugins.items()}
        sheets = [_FOLDER / "static/css" / name for name in _STYLE_SHEETS]
        base, self._static = build_static_routes(STATIC, {**folders, "": _FOLDER / "static"}, sheets)
        self._templates.globals.update(
            asset=lambda name: f"{base}/{name}",
            max_body_bytes=max_body_bytes,
            signs_in=signs_in,
            job_pages=self._list_job_pages,
            links=_list_links(self._plugins),
            panels={"chat": [item for item in self._plugins.items() if item[1].under == "chat" and item[1].panel]},
            addons=[item for item in self._plugins.items() if item[1].workbench],
        )

    def routes(self) -> list[Route | Mount]:
        """Build the routes of all pages and of their static files."""
        pages: dict[str, _Handler] = {
            "/": self.home,
            **{f"/console/{task}": partial(self._render_task_page, task=task) for task in _PICTURE_TASKS},
            "/console/chat": self.chat,
            "/console/judge": self.judge,
            "/console/probe": self.probe,
            "/console/jobs": partial(self.plain, name="jobs"),
            "/console/admin": partial(self.plain, name="admin"),
            "/console/run/{task}": self.run,
            "/console/models": self.models,
            "/console/models/{name:path}": self.card,
            **({"/console/sign-in": self.sign_in} if self._signs_in else {}),
            "/runs": partial(self.plain, name="runs"),
            "/runs/{id}": partial(self.plain, name="runs"),
        }
        for slug, added in self._plugins.items():
            pages[f"/console/{slug}"] = self._render_plugin(slug, added)
        return [
            *(Route(path, self._with_errors(page), middleware=COMPRESSION) for path, page in pages.items()),
            *self._static,
            Route("/console/{rest:path}", self._with_errors(self.missing)),
        ]

    async def home(self, request: Request) -> Response:
        """Tasks, and a result for each kind of user."""
        entries = await self._client.models(request)
        return self._render(
            "home.html",
            request,
            page="home",
            counts={"all": len(entries), "ready": sum(entry.ready for entry in entries)},
            services={entry.service for entry in entries},
            gallery=[*GALLERY, *(entry for s, page in self._plugins.items() for entry in page.place_gallery(s))],
        )

    async def models(self, request: Request) -> Response:
        """All models, by service."""
        entries = await self._client.models(request)
        return self._render("models.html", request, page="models", services=model_view.group_by_service(entries))

    async def plain(self, request: Request, *, name: str) -> Response:
        """A page whose content the browser fetches, because it belongs to a key; the request here checks the key."""
        await self._client.models(request)
        run = request.path_params.get("id")
        return self._render(f"{name}.html", request, page=name, origin=_origin(request), run=run)

    async def chat(self, request: Request) -> Response:
        """A conversation; models other than the default start with their own example."""
        models = [entry for entry in await self._client.models(request) if entry.task == "chat"]
        model = select_model(models, request.query_params.get("model"))
        example = await self._client.example(request, model.id) if model and model != models[0] else {}
        card = await self._client.card(request, model.id) if model else {}
        methods: list[dict[str, Any]] = []
        steering = None
        if task_options.takes_methods(card):
            methods = task_options.build_method_forms(card, await self._client.methods(request))
            steering = await self._find_steering(request, card)
        starters = task_options.build_starters(example)
        return await self._render_task_page(request, "chat", starters=starters, methods=methods, steering=steering)

    async def _find_steering(self, request: Request, card: dict[str, Any]) -> dict[str, Any] | None:
        """The steering vectors made with a model, or that the key may not steer; None where no service steers."""
        try:
            vectors = await self._client.steering_vectors(request)
        except PermissionDenied:
            return {"is_locked": True, "vectors": []}
        if vectors is None:
            return None
        return {"is_locked": False, "vectors": [one for one in vectors if one["model"] == card["id"]]}

    async def judge(self, request: Request) -> Response:
        """Relevance labels: pairs, batches, and the metrics computed from them."""
        models = [entry.id for entry in await self._client.models(request) if entry.task == "judge"]
        templates = await self._client.templates(request) if models else []
        return self._render("judge.html", request, page="judge", models=models, templates=templates)

    async def probe(self, request: Request) -> Response:
        """Experiments on language models; a permalink holds the spec that fills the form."""
        return await self._render_task_page(request, "probe", spec=_read_spec(request))

    async def run(self, request: Request) -> Response:
        """The generic page, for any task without a page of its own."""
        return await self._render_task_page(request, request.path_params["task"], "run.html")

    async def card(self, request: Request) -> Response:
        """One model."""
        card = await self._client.card(request, request.path_params["name"])
        options = [
            {
                "name": f.name, "help": f.help, "required": f.required, "type_words": model_view.describe_type(f),
                "default_text": f.default_text or ("" if f.fallback is None else str(f.fallback)),
            }
            for f in build_fields(card.get("schema") or {}, fallbacks=task_options.read_fallbacks(card))
        ]  # fmt: skip
        return self._render(
            "card.html", request, page="models", card=model_view.describe_model(card), options=options,
            facts=list(model_view.list_facts(card)), snippets=build_snippets(card, _origin(request), keys=self._keys),
        )  # fmt: skip

    async def sign_in(self, request: Request) -> Response:
        """The page that an identity provider sends the reader back to."""
        return self._render("locked.html", request, page="", returns=True)

    async def missing(self, request: Request) -> Response:
        """An unknown page.

        Raises NotFound: always; the hint names the plug-in that brings the page, where one is known.
        """
        path = request.url.path[:200]
        error = plugins.explain_missing("paths", path, f"The page {path}")
        raise error or NotFound(f"There is no page {path}.", hint="Choose one from the navigation.")

    def _list_job_pages(self) -> dict[str, str]:
        """List the pages that show the result of a job, by the path of its request."""
        tasks = {*_PICTURE_TASKS, "probe", *self._client.known_tasks} - {"chat", "judge", "infer"}
        own = {task_path(task): find_page(task) for task in tasks}
        added = {page.path: f"/console/{slug}" for slug, page in self._plugins.items() if page.path}
        return {**own, "/v1/judge/batches": find_page("judge"), **added}

    def _render_plugin(self, slug: str, page: Page) -> _Handler:
        async def handle(request: Request) -> Response:
            facts = {**await page.fetch(self._client, request), "page": slug, "extensions": [(slug, page)]}
            return self._render(f"{slug}/{page.template}", request, **facts)

        return handle

    async def _render_task_page(
        self,
        request: Request,
        task: str,
        template: str | None = None,
        *,
        spec: dict[str, Any] | None = None,
        starters: Sequence[str] = (),
        methods: Sequence[dict[str, Any]] = (),
        steering: dict[str, Any] | None = None,
    ) -> Response:
        entries = await self._client.models(request)
        models = [entry for entry in entries if entry.task == task]
        model = select_model(models, request.query_params.get("model"))
        card = await self._client.card(request, model.id) if model else None
        return self._render(
            template or f"{task}.html", request, page=task, task=task, title=title_task(task), path=task_path(task),
            models=models, chosen=card, spec=spec, starters=starters, methods=methods, steering=steering,
            options=task_options.build_options(card, "" if template else task, spec) if card else [],
            threshold=task_options.read_default(card or {}, "threshold", 0.5),
            confidence=((card or {}).get("details") or {}).get("confidence", 0.25),
            iou=task_options.read_default(card or {}, "iou", 0.45),
            sibling_tasks=model_view.list_sibling_tasks(entries, model.service) if model else [],
            downloads=task_options.list_downloads(card or {}),
        )  # fmt: skip

    def _with_errors(self, page: _Handler) -> _Handler:
        async def handle(request: Request) -> Response:
            try:
                return await page(request)
            except FoveaError as error:
                template = "locked.html" if error.status == 401 else "problem.html"
                return self._render(template, request, status=error.status, page="", error=error)

        return handle

    def _render(self, template: str, request: Request, *, status: int = 200, **facts: Any) -> HTMLResponse:
        panels: Any = self._templates.globals["panels"]
        shown = {
            "extensions": panels.get(facts.get("page"), []),
            "navigation": build_navigation(self._client.known_tasks, self._plugins),
            "known_tasks": self._client.known_tasks,
            "has_outage": self._client.has_outage,
            "theme": request.cookies.get("fovea-theme") if request.cookies.get("fovea-theme") in _THEMES else "system",
            **facts,
        }
        text = self._templates.get_template(template).render(shown, request=request)
        return HTMLResponse(text, status, {"cache-control": "no-store"})


def _list_links(pages: Mapping[str, Page]) -> dict[str, list[tuple[str, str, str]]]:
    """List the plug-ins' pages by the core's page that links to them: slug, title, URL."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for slug, page in pages.items():
        if page.under is not None:
            found.setdefault(page.under, []).append((slug, page.title, f"/console/{slug}"))
    return found


def select_model(models: list[ModelEntry], name: str | None) -> ModelEntry | None:
    """Select the requested model, else the one that clients take; None where there is none."""
    known = {entry.id: entry for entry in models}
    if models and name not in known:
        name = pick_default_model(models[0].task, models)
    return known.get(name or "")


def _read_spec(request: Request) -> dict[str, Any]:
    """Read the spec of a permalink. Raises InvalidOption: it is not a JSON object."""
    try:
        spec = json.loads(request.query_params.get("spec") or "{}")
    except (ValueError, RecursionError):
        spec = None
    if not isinstance(spec, dict):
        raise InvalidOption(
            "The spec of the permalink is not a JSON object.", hint="Open the page without it.", field="spec"
        )
    return spec


def _render_code_marks(text: str) -> Markup:
    """Render text in which `backticks` mark code."""
    parts = str(text).split("`")
    return Markup("").join(  # every part is escaped
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def _origin(request: Request) -> str:
    return str(request.base_url).rstrip("/")
