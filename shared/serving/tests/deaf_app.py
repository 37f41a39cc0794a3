"""An app whose work never looks up: for a worker that must end all the same."""

import threading

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.settings import settings


async def deaf(_request: Request) -> Response:
    """Never answers; a file tells that it was asked."""
    (settings().data_dir / "deaf").touch()
    await anyio.to_thread.run_sync(threading.Event().wait)
    return Response()


app = Starlette(routes=[Route("/deaf", deaf, methods=["POST"])])
