"""An ASGI app under uvicorn in a thread, on a free port: what a test talks to over real sockets."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from tests.harness.waiting import wait_until

START_S = 60
STOP_S = 20


def is_loaded(app: Any) -> bool:
    """Whether every model of an app of `shared.serving` is ready; pass it as `ready`."""
    return bool(app.state.host.ready)


@contextlib.contextmanager
def serve_in_thread(app: Any, ready: Callable[[Any], bool] | None = None, **config: Any) -> Iterator[str]:
    """Serve `app` and give its base URL; `config` goes to `uvicorn.Config`."""
    options = {"port": 0, "log_config": None, "access_log": False, "ws": "none", **config}
    with run_server(uvicorn.Server(uvicorn.Config(app, **options))) as url:
        if ready:
            wait_until(lambda: ready(app), START_S, "the app's readiness")
        yield url


@contextlib.contextmanager
def run_server(server: uvicorn.Server) -> Iterator[str]:
    """Run a server that is already made in a thread, and give its base URL."""

    def run() -> None:
        with contextlib.suppress(SystemExit):  # uvicorn's end when an app fails to start; the log says why
            server.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), START_S, "the server's start")
        assert thread.is_alive(), "the server died at its start"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STOP_S)
        assert not thread.is_alive(), f"the server did not stop within {STOP_S} s"
