"""Waits until a service is ready behind a gateway, then sends it its own example request."""

import sys
import time

import httpx2

WAIT_S = 180
PATHS = {"chat": "/v1/chat/completions"}


def ready_models(client: httpx2.Client, service: str) -> list[dict[str, str]]:
    """Ready models of the service; none while the gateway or the service is not up."""
    try:
        listed = client.get("/v1/models").json()["data"]
    except (httpx2.HTTPError, KeyError, ValueError):
        return []
    return [model for model in listed if model["service"] == service and model["ready"]]


def main(url: str, service: str) -> int:
    """Return 0 when the example of the service's first model that needs no other service was answered with 200."""
    until = time.monotonic() + WAIT_S
    with httpx2.Client(base_url=url, timeout=60) as client:
        while not (models := ready_models(client, service)):
            if time.monotonic() > until:
                print(f"{service} was not ready behind {url} within {WAIT_S} s")
                return 1
            time.sleep(0.1)
        for model in models:
            example = client.get(f"/v1/models/{model['id']}/example").json()
            answer = client.post(PATHS.get(model["task"], f"/v1/{model['task']}"), json=example)
            if answer.status_code != 503:  # which judges answer whose language model is another service's
                break
    print(f"{model['id']} of {service}: {answer.status_code}, {len(answer.content)} bytes")
    return 0 if answer.status_code == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
