"""Dockerfile and compose file say what they should; where buildah is present, one image is really built."""

import json
import os
import pathlib
import re
import shutil
import sys
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from shared.serving.device_placement import list_gpus
from tests.deploy.test_chart import SIX
from tests.deploy.tools import ROOT, run, script

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf8"))
SERVICES = {name: body for name, body in COMPOSE["services"].items() if name != "redis"}


def test_hadolint_is_silent_and_compose_follows_its_specification():
    done = run(pathlib.Path(sys.prefix) / "bin" / "hadolint", ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    schema = json.loads((pathlib.Path(__file__).parent / "schemas/compose-spec.json").read_text("utf8"))
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_what_the_build_copies_is_not_ignored():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf8").splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    sources = {source for copy in copies if not copy[0].startswith("--") for source in copy}
    assert {one for one in sources if one not in allowed and one.split("/")[0] not in allowed} == set()


def test_containers_are_locked_and_only_the_gateway_is_published():
    published = {name: body["ports"] for name, body in COMPOSE["services"].items() if "ports" in body}
    assert set(published) == {"gateway"}
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])
    for name, body in COMPOSE["services"].items():
        assert body["read_only"] is True, name
        assert body["cap_drop"] == ["ALL"], name
    for name, body in SERVICES.items():
        assert "FOVEA_STATIC_UPSTREAMS" not in body["environment"], name
        assert "container_name" not in body, name
        assert body["environment"]["FOVEA_REDIS_URL"] == "redis://redis:6379/0", name  # a password may have any sign
        assert body["environment"]["FOVEA_REDIS_PASSWORD"] == "${REDIS_PASSWORD:-}", name
    for name, body in SERVICES.items():
        assert int(body["stop_grace_period"].rstrip("s")) > int(body["environment"]["FOVEA_SHUTDOWN_GRACE_S"]), name
    redis = COMPOSE["services"]["redis"]
    assert redis["user"] == "999:999"  # else the entry point changes the user itself, and may not
    assert "--maxmemory-policy noeviction" in redis["command"][-1]
    assert '--requirepass "$$REDIS_PASSWORD"' in redis["command"][-1]


def test_environment_names_of_compose_exist_and_each_profile_has_a_replica_of_each_service():
    from shared.settings import Settings

    known = {f"FOVEA_{name.upper()}" for name in Settings.model_fields}
    known |= {"OTEL_EXPORTER_OTLP_ENDPOINT"}  # OpenTelemetry's own name
    for name, body in SERVICES.items():
        assert set(body["environment"]) <= known, name
    for profile, suffix in {"cpu": "", "gpu": "-gpu"}.items():
        found = {name for name, body in SERVICES.items() if body.get("profiles") == [profile]}
        assert found == {f"{name}{suffix}" for name in SIX}
        for name in found:
            assert SERVICES[name]["image"].endswith(f":{profile}")
            assert SERVICES[name]["environment"]["FOVEA_JOBS_IN_REPLICA"] == "1"
            reserved = SERVICES[name].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
            assert bool(reserved) == (profile == "gpu"), name


def test_images_run_without_root_and_hold_the_graphs_that_services_look_for():
    assert "USER 65532:65532" in DOCKERFILE
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("\nCMD")
    [folder] = re.findall(r"FOVEA_GRAPHS_DIR=(\S+)", DOCKERFILE)
    assert f"fovea export graphs {folder} --service" in DOCKERFILE
    assert DOCKERFILE.index("rm -rf /opt/export") < DOCKERFILE.index("COPY --from=build /opt/fovea")


@pytest.mark.release
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not all(map(shutil.which, ("buildah", "podman", "runc"))),
    reason="no buildah, podman or runc: `apt-get install buildah podman runc mmdebstrap` to build images",
)
@pytest.mark.parametrize(("service", "flavour", "said"), [
    ("gateway", "cpu", "First answer"),
    ("medical-seg", "onnx", "First answer"),
    # Its hint reaches `/readyz`, and with a GPU it answers.
    ("llm-longctx", "gpu", "First answer" if list_gpus() else "There is no CUDA device: FOVEA_DEVICE is cuda"),
])  # fmt: skip
def test_image_of_one_service_builds_and_serves(service, flavour, said):
    done = run(ROOT / "deploy/images.sh", service, env={**os.environ, "FLAVOUR": flavour})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert said in done.stdout


def test_the_packed_language_model_is_readable_for_the_user_of_the_container(tmp_path, monkeypatch):
    def load_weights(_file, folder, _wanted):
        (made := folder / "lm/made").mkdir(mode=0o700, parents=True)
        (made / "config.json").touch(mode=0o600)
        return SimpleNamespace(format="q4")

    pack_lm = script("pack_lm")
    for name, value in {"INSTALLED": tmp_path, "bundled_gguf": lambda: tmp_path, "load_weights": load_weights}.items():
        monkeypatch.setattr(pack_lm, name, value)
    pack_lm.main()
    found = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert found == {"lm": 0o755, "lm/made": 0o755, "lm/made/config.json": 0o644}
