"""The chart's `serveConfigV2` is PUT to a real Ray of a head and two nodes, as KubeRay does; it runs and answers."""

from __future__ import annotations

import importlib

import httpx2
import pytest
import yaml

from tests.deploy.ray_cluster import run_cluster, wait_for
from tests.deploy.test_chart import ALL_ON, SIX, named, render
from tests.deploy.tools import helm

pytestmark = [
    pytest.mark.skipif(helm() is None, reason="no helm: neither on PATH nor in the carrier wheel"),
    # Ray's own use of pydantic, which it has to mend.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]
NODES = ("127.0.0.2", "127.0.0.3")
PLACED = ("medical-seg", "detection")


@pytest.fixture(scope="module")
def configs():
    """The Serve config of every service."""
    documents = render(*ALL_ON)
    return {
        name: yaml.safe_load(named(documents, "RayService", f"demo-{name}")["spec"]["serveConfigV2"]) for name in SIX
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with run_cluster(tmp_path_factory, *NODES) as made:
        yield made


@pytest.mark.parametrize("service", SIX)
def test_every_serve_config_is_valid_and_becomes_an_application(configs, service):
    schema, ours = importlib.import_module("ray.serve.schema"), importlib.import_module("shared.serving.ray")
    [application] = schema.ServeDeploySchema.model_validate(configs[service]).applications
    built = ours.application(application.args)
    assert built._bound_deployment.name == service
    assert (
        built._bound_deployment._deployment_config.autoscaling_config.max_replicas == application.args["max_replicas"]
    )


@pytest.mark.slow
def test_configs_of_the_chart_run_on_a_real_ray_and_answer_through_a_gateway(cluster, configs):
    cluster.submit(*(configs[name] for name in PLACED))
    cluster.wait_running(180)
    url = cluster.start_gateway()
    for service in PLACED:
        [replica] = wait_for(lambda s=service: cluster.list_replicas(s), 60, f"{service} is ready")
        [model, *_] = replica.models
        example = wait_for(lambda m=model: ask(url, f"/v1/models/{m}/example"), 30, "the gateway knows it").json()
        task = httpx2.get(f"{url}/v1/models/{model}").json()["task"]
        answer = httpx2.post(f"{url}/v1/{task}", json=example, timeout=60)
        assert answer.status_code == 200, answer.text


def ask(url, path):
    answer = httpx2.get(url + path, timeout=10)
    return answer if answer.status_code == 200 else None
