"""Health check of a container: `python -m shared.serving.health_check`, whatever runs in it.

A gateway or a replica on its fixed port says itself that it lives. A job worker, and a replica that Ray placed, which
listens on a free port, are known by their metrics port.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from shared.settings import settings

_TIMEOUT_S = 2.0


def is_healthy(http_port: int, metrics_port: int) -> bool:
    """Whether the listener on the first port is healthy; without one, whether somebody serves metrics."""
    try:
        return _answers(f"http://127.0.0.1:{http_port}/livez")
    except ConnectionRefusedError:
        pass
    try:
        return _answers(f"http://127.0.0.1:{metrics_port}/metrics")
    except ConnectionRefusedError:
        return False


def _answers(url: str) -> bool:
    """Whether the URL is answered with a success. Raises ConnectionRefusedError: nobody listens there."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # our own loopback address
            return bool(answer.status == 200)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise error.reason from error
        return False
    except OSError:
        return False


def main() -> int:
    """0 where what runs in the container lives."""
    config = settings()
    return 0 if is_healthy(config.http_port, config.metrics_port) else 1


if __name__ == "__main__":
    sys.exit(main())
