"""Writes as JSON what the core says in an environment without plug-ins: `python -m tests.core_alone.examine`."""

import importlib
import io
import json
import pkgutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from starlette.testclient import TestClient

import fovea
import services
import shared
from fovea.cli import main as command_line
from fovea.errors import NotFound
from fovea.plugins import entries
from services.gateway.app import build_gateway
from services.gateway.routing.route_table import RouteTable
from shared.registry.discovery import SERVICES, servables, service_package
from shared.settings import Settings

FILE = Path(fovea.__file__).with_name("known_plugins.json")
KNOWN: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text("utf8"))
GROUPS = ("adapters", "commands", "extensions", "findings", "models", "pages", "recipes", "routes", "traffic")


def import_core() -> list[str]:
    """Import every module of the core; return the plug-ins that came with them."""
    for package in (fovea, services, shared):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not {"tests", "__main__"} & set(found.name.split(".")) and not found.name.endswith("_pb2_grpc"):
                importlib.import_module(found.name)
    return sorted({name.partition(".")[0] for name in sys.modules if name.startswith("fovea_")})


def describe_services() -> dict[str, Any]:
    """Build all apps; return the paths and models of each."""
    apps = {service: importlib.import_module(f"{service_package(service)}.app").app for service in SERVICES}
    return {
        service: {
            "paths": sorted(app.openapi()["paths"]),
            "models": sorted(servables(service)),
            "answers": {name: ask_service(TestClient(app), plugin["paths"]) for name, plugin in KNOWN.items()},
        }
        for service, app in apps.items()
    }


def ask_service(client: TestClient, paths: list[str]) -> dict[str, str]:
    """Ask a service, which a gateway sends everything below its paths, for what a plug-in would bring."""
    known = client.app.openapi()["paths"]  # type: ignore[attr-defined]  # FastAPI's own
    asked = [(path.rpartition(" "), path) for path in paths if not path.startswith("/console/")]
    return {
        label: client.request(method or "POST", path).text
        for (method, _, path), label in asked
        if not method or path in known
    }


def ask_gateway(folder: Path) -> dict[str, Any]:
    """Ask a gateway for its pages, and for every path that a plug-in would bring."""
    app = build_gateway(Settings(data_dir=folder))
    pages = {path for plugin in KNOWN.values() for path in plugin["paths"] if path.startswith("/console/")}
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        shown = {path: client.get(path).text for path in ("/", "/console/segment", "/console/detect", "/console/chat")}
        answers = {
            name: {
                path: (found.status_code, found.text)
                for path in filter(lambda path: path.startswith("/"), plugin["paths"])
                for found in [client.get(path)]
            }
            for name, plugin in KNOWN.items()
        }
        return {"linked": [page for page in pages if any(page in text for text in shown.values())], "answers": answers}


def ask_models() -> dict[str, dict[str, str]]:
    """Ask for every model that a plug-in would bring."""

    def ask(model: str) -> str:
        try:
            return RouteTable().find_service(model)
        except NotFound as error:
            return f"{error.detail} {error.hint}"

    return {name: {model: ask(model) for model in plugin["models"]} for name, plugin in KNOWN.items()}


def ask_commands() -> dict[str, Any]:
    """Ask the command line for its help, and for every command that a plug-in would bring."""

    def run(*words: str) -> str:
        told = io.StringIO()
        argv = patch.object(sys, "argv", ["fovea", *words])
        with redirect_stdout(told), redirect_stderr(told), suppress(SystemExit), argv:
            command_line.main()
        return told.getvalue()

    answers = {name: {verb: run(*verb.split(".")) for verb in plugin["commands"]} for name, plugin in KNOWN.items()}
    return {"help": run("--help"), "answers": answers}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = {
            "entries": {group: [p.value for p in entries(f"fovea.{group}")] for group in GROUPS},
            "plugins": import_core(), "services": describe_services(), "gateway": ask_gateway(Path(folder)),
            "models": ask_models(), "commands": ask_commands(),
        }  # fmt: skip
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
