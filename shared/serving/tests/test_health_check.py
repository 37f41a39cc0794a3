"""The image's HEALTHCHECK of a gateway or replica, of a worker, of one that hangs, and of nothing at all."""

import http.server
import threading

import pytest

from shared.serving import health_check
from shared.serving.health_check import is_healthy
from tests.harness.waiting import free_port


@pytest.fixture
def answering():
    """Starts servers that answer every GET with a status; `None` never answers."""
    servers, over = [], threading.Event()

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if status is None:
                    over.wait(20)
                else:
                    self.send_response(status)
                    self.end_headers()

            def log_message(self, *_):
                """Say nothing."""

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(made)
        return made.server_address[1]

    yield start
    over.set()
    for made in servers:
        made.shutdown()
        made.server_close()


def test_who_listens_on_the_main_port_says_it_himself_and_a_worker_is_known_by_its_metrics(answering, monkeypatch):
    monkeypatch.setattr(health_check, "_TIMEOUT_S", 0.5)
    assert is_healthy(answering(200), answering(200)) is True
    assert is_healthy(answering(503), answering(200)) is False
    assert is_healthy(answering(None), answering(200)) is False, "one that hangs"
    assert is_healthy(free_port(), answering(200)) is True
    assert is_healthy(free_port(), free_port()) is False


def test_a_proxy_of_the_container_is_not_asked_for_its_own_loopback(answering, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert is_healthy(answering(200), answering(200)) is True
