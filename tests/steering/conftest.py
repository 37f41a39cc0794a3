"""The gateway in front of a real tiny model that can be steered, and a browser."""

from pathlib import Path

import httpx2
import pytest

from services.gateway.tests.stage import fronted
from services.llm_longctx.api import steering
from services.llm_longctx.tests.conftest import app_of, write_folder
from tests.harness.waiting import wait_until

Steerable = tuple[str, dict[str, dict[str, str]]]


@pytest.fixture(scope="module", params=["insecure-local"])
def steerable(request, tmp_path_factory):
    """The gateway's URL, and headers with a key that may steer and one that may not."""
    folder: Path = tmp_path_factory.mktemp("steerable")
    app = app_of(write_folder(folder / "Tiny Llama"), folder / "data", steering.router)
    with fronted(app, "llm-longctx", folder / "gateway", auth=request.param) as (url, _, keys):
        headers: dict[str, dict[str, str]] = {"may": {}, "may not": {}}
        if request.param == "keys":
            headers["may"] = {"x-api-key": keys.add("may", ("infer", "interventions"))[1]}
            headers["may not"] = {"x-api-key": keys.add("may-not", ("infer",))[1]}
        vectors = f"{url}/v1/steering-vectors"  # until the gateway knows the service's own routes
        wait_until(lambda: httpx2.get(vectors, headers=headers["may"], timeout=60).status_code == 200, 60, vectors)
        yield url, headers


@pytest.fixture
def url(steerable):
    return steerable[0]
