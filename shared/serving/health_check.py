"""Health check of a container: `python -m shared.serving.health_check`, whatever runs in it.

A gateway or a replica on its fixed port says itself that it lives. A job worker, and a replica that Ray placed, which
listens on a free port, are known by their metrics port.
"""

import sys
import urllib.request

from shared.settings import settings

_TIMEOUT_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this container's loopback


def is_healthy(http_port: int, metrics_port: int) -> bool:
    """Whether the listener on the first port is healthy; without one, whether somebody serves metrics."""
    for address in (f"{http_port}/livez", f"{metrics_port}/metrics"):
        try:
            with _DIRECT.open(f"http://127.0.0.1:{address}", timeout=_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except OSError as error:
            if not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                return False
    return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(settings().http_port, settings().metrics_port) else 1)
