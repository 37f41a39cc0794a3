"""The protocol of Label Studio's ML backends: health, setup, predict, events and training.

Paths and bodies are those of the SDK `label-studio-ml` 2; what Label Studio does not need is not here.
"""

import asyncio
import base64
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fovea.api.model import ModelEntry
from fovea.errors import FoveaError, InvalidOption, PermissionDenied, Unauthenticated, UnsupportedMedia
from fovea_labelstudio.label_config import ControlTag, find_control
from fovea_labelstudio.predictor import Predictor, version_of
from fovea_labelstudio.settings import LabelStudioSettings
from fovea_labelstudio.training_run import TrainingRuns
from shared import telemetry
from shared.local_names import is_loopback, without_port
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.middleware import ServiceMiddleware
from shared.serving.http.request_parsing import read_json_object

MAX_TASKS = 1000
"""Of one request."""

AT_ONCE = 4

MAX_DIGITS = 18
"""Of a project's number."""

LABELLED = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"})


class LabelStudioBackend:
    """Requests of Label Studio to its ML backend.

    Without `runs` nothing is trained; `fit_every` new or changed annotations start a training, at 0 only a person does.
    """

    def __init__(self, predictor: Predictor, runs: TrainingRuns | None, fit_every: int = 0) -> None:
        self._predictor, self._runs, self._fit_every = predictor, runs, fit_every
        self._labelled: Counter[int] = Counter()

    async def health(self, request: Request) -> Response:
        """Up: whether the gateway answers is said by `setup`."""
        return JSONResponse({"status": "UP", "model_class": "Fovea"})

    async def setup(self, request: Request) -> Response:
        """Whether a project's configuration fits the model, and the model's version."""
        body = await _read_json(request)
        model = await self._predictor.find_model()
        if text := body.get("schema"):
            find_control(str(text), model.task)
        return JSONResponse({"model_version": version_of(model)})

    async def versions(self, request: Request) -> Response:
        """The version that answers now."""
        return JSONResponse({"versions": [version_of(await self._predictor.find_model())]})

    async def predict(self, request: Request) -> Response:
        """A prediction for each task; an empty list where one failed, so that nothing is taken for found."""
        body = await _read_json(request)
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or len(tasks) > MAX_TASKS or not all(isinstance(task, dict) for task in tasks):
            raise InvalidOption(f"`tasks` must be a list of at most {MAX_TASKS} tasks.", field="tasks")
        model = await self._predictor.find_model()
        control = find_control(str(body.get("label_config", "")), model.task)
        gate = asyncio.Semaphore(AT_ONCE)
        found = await asyncio.gather(*(self._predict_one(task, control, model, gate) for task in tasks))
        failures = [each for each in found if isinstance(each, FoveaError)]
        if failures and len(failures) == len(tasks):
            raise failures[0]
        results = [[] if isinstance(each, FoveaError) else each for each in found]
        return JSONResponse({"results": results, "model_version": version_of(model)})

    async def webhook(self, request: Request) -> Response:
        """Events of a project: a person starts a training, or enough new labels do."""
        body = await _read_json(request)
        project, action = _project_id(body), str(body.get("action", ""))
        if action == "START_TRAINING":
            return self._start(project)
        if self._runs is None or not self._fit_every or action not in LABELLED:
            return JSONResponse({"status": "ignored"})
        labelled = body.get("annotations")
        self._labelled[project] += (len(labelled) if isinstance(labelled, list) else 0) or 1
        if self._labelled[project] < self._fit_every or self._runs.is_running:
            return JSONResponse({"status": "counted", "new_annotations": self._labelled[project]})
        return self._start(project)

    async def train(self, request: Request) -> Response:
        """The event that older versions of Label Studio send instead of `START_TRAINING`."""
        return self._start(_project_id(await _read_json(request)))

    async def status(self, request: Request) -> Response:
        """How the last training stands, for people."""
        return JSONResponse(asdict(self._runs.state) if self._runs else {"status": "no recipe"})

    def _start(self, project: int) -> Response:
        if self._runs is None:
            raise InvalidOption("This backend does not train.", hint="Start it with --recipe.", field="action")
        self._runs.start(project)
        self._labelled[project] = 0
        return JSONResponse({"status": "started", "project": project}, 201)

    async def _predict_one(
        self, task: Mapping[str, Any], control: ControlTag, model: ModelEntry, gate: asyncio.Semaphore
    ) -> dict[str, Any] | FoveaError:
        async with gate:
            try:
                return await self._predictor.predict(task, control, model)
            except FoveaError as error:
                telemetry.log().warning("prediction failed", task=str(task.get("id"))[:20], detail=error.detail)
                return error


def build_backend_app(backend: LabelStudioBackend, settings: LabelStudioSettings) -> Starlette:
    """The app of a backend; with a password, whoever calls must send it (Basic, any user name).

    Without one it answers to names of this machine only, which no foreign web page can be found under.
    """
    password = settings.label_studio_backend_password

    def route(path: str, answer: Callable[[Request], Awaitable[Response]], method: str) -> Route:
        async def ask_password(request: Request) -> Response:
            if password is not None and not _is_known(request, password.get_secret_value()):
                hint = "Enter it in Label Studio's model settings."
                raise Unauthenticated("The password is missing or wrong.", hint=hint)
            return await answer(request)

        return Route(path, ask_password, methods=[method])

    return Starlette(
        routes=[
            Route("/", backend.health),
            Route("/health", backend.health),
            route("/setup", backend.setup, "POST"),
            route("/versions", backend.versions, "GET"),
            route("/predict", backend.predict, "POST"),
            route("/webhook", backend.webhook, "POST"),
            route("/train", backend.train, "POST"),
            route("/status", backend.status, "GET"),
        ],
        middleware=[
            Middleware(ServiceMiddleware, service="label-studio", settings=settings),
            *([] if password else [Middleware(_LocalNames)]),
        ],
        exception_handlers={HTTPException: _on_error},
    )


class _LocalNames:
    """ASGI middleware that refuses a `Host` which is not a name of this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = without_port(dict(scope["headers"]).get(b"host", b"localhost").decode("latin-1"))
            if not is_loopback(host):
                hint = "Use http://127.0.0.1, or set FOVEA_LABEL_STUDIO_BACKEND_PASSWORD."
                error = PermissionDenied(f"Without a password {host[:100]!r} is not a name of this backend.", hint=hint)
                await render(scope, error, {"connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _on_error(request: Request, error: Exception) -> Response:
    return render(request.scope, translate(error), getattr(error, "headers", None))


async def _read_json(request: Request) -> dict[str, Any]:
    """The body; only with JSON's content type, which no foreign web page can send without a preflight."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("The body must be application/json.", field="content-type")
    return read_json_object(await request.body())


def _project_id(body: Mapping[str, Any]) -> int:
    """Of an event (`project.id`), or of a request that names it as `id.time`."""
    project = body.get("project")
    text = str(project.get("id")) if isinstance(project, dict) else str(project).partition(".")[0]
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise InvalidOption("The project has no number.", field="project")
    return int(text)


def _is_known(request: Request, password: str) -> bool:
    kind, _, coded = request.headers.get("authorization", "").partition(" ")
    try:
        given = base64.b64decode(coded, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
    except ValueError:
        return False
    return hmac.compare_digest(given, password.encode())
