"""Dockerfile and compose file say what they should; where buildah is present, one image is really built."""

import json
import pathlib
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf8"))
SERVICES = {name: body for name, body in COMPOSE["services"].items() if name != "redis"}


def test_hadolint_is_silent():
    tool = pathlib.Path(sys.prefix) / "bin" / "hadolint"
    done = subprocess.run([tool, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_file_follows_the_compose_specification():
    schema = json.loads((pathlib.Path(__file__).parent / "schemas/compose-spec.json").read_text("utf8"))
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_only_the_gateway_is_published_and_only_on_loopback():
    published = {name: body["ports"] for name, body in COMPOSE["services"].items() if "ports" in body}
    assert set(published) == {"gateway"}
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])


def test_every_container_is_read_only_and_without_capabilities():
    for name, body in COMPOSE["services"].items():
        assert body["read_only"] is True, name
        assert body["cap_drop"] == ["ALL"], name


def test_compose_environment_names_are_settings_that_exist():
    from shared.settings import Settings

    known = {f"FOVEA_{name.upper()}" for name in Settings.model_fields}
    for name, body in SERVICES.items():
        assert set(body["environment"]) <= known, name


def test_upstreams_of_the_gateway_are_services_of_the_file():
    from shared.settings import Settings

    upstreams = Settings(
        static_upstreams=SERVICES["gateway"]["environment"]["FOVEA_STATIC_UPSTREAMS"]
    ).upstream_addresses
    assert set(upstreams) <= set(SERVICES)
    for name, (http, grpc) in upstreams.items():
        assert http == f"http://{name}:8080"
        assert grpc == f"{name}:8081"


def test_image_runs_as_a_numeric_user_without_root():
    assert "USER 65532:65532" in DOCKERFILE
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("\nCMD")


def test_dockerfile_extras_exist_in_pyproject():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
    assert {"gateway", "cpu", "gpu", "medical-seg", "llm-longctx"} <= set(extras)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("buildah"), reason="no buildah: `apt-get install buildah podman mmdebstrap` to build images"
)
def test_image_of_one_service_builds_and_serves():
    done = subprocess.run(
        [ROOT / "deploy/images.sh", "gateway"], capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
