"""Each command of docs/02-deploy.md is run, or held against the chart, Compose file or command line that it names."""

import re
import shlex

import pytest
import yaml

from shared.settings import Settings
from tests.command import command_runner
from tests.deploy.test_chart import ALL_ON, CHART, named, render, run_helm
from tests.deploy.tools import ROOT, needs_helm

PAGE = (ROOT / "docs/02-deploy.md").read_text("utf8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]


def begin_with(*words):
    found = [line for line in COMMANDS if shlex.split(line)[: len(words)] == list(words)]
    assert found, words
    return found


@needs_helm
@pytest.mark.parametrize("line", [c for c in COMMANDS if "deploy/helm/fovea" in c])
def test_our_chart_takes_the_values_of_the_command(line):
    words = shlex.split(line)
    assert render(*[words[i + 1] for i, word in enumerate(words) if word == "--set"])


@needs_helm
def test_values_secrets_and_services_that_the_page_names_exist():
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf8"))
    sets = re.findall(r"--set ([\w.-]+)=(\S+?)(?=[`\s),]|$)", PAGE)
    ours = [pair for pair in sets if not pair[0].startswith("prometheus.")]
    assert len(ours) >= 8
    for name, _ in ours:
        part = values
        for key in name.split("."):
            assert key in part, name
            part = part[key]
    run_helm("lint", str(CHART), "--strict", *(f"--set={name}={value}" for name, value in ours[:3]))
    flags = [f"--set={pair}" for pair in ("redis.passwordSecret=fovea-redis", *ALL_ON)]
    text = run_helm("template", "fovea", str(CHART), *flags).stdout
    documents = [d for d in yaml.safe_load_all(text) if d]
    for line in begin_with("kubectl", "-n", "fovea", "create", "secret"):
        words = shlex.split(line)
        key = words[words.index("generic") + 2].partition("=")[2].partition("=")[0]
        assert re.search(rf"(name|secretName): {words[words.index('generic') + 1]}\b", text), line
        assert key in text, line
    assert named(documents, "Service", "fovea-gateway")["spec"]["ports"][0]["port"] == 80
    assert named(documents, "StatefulSet", "fovea-redis")


def test_keys_are_made_as_the_page_says(tmp_path, monkeypatch, capfdbinary):
    fovea = command_runner(monkeypatch, capfdbinary)
    for line in [c for c in COMMANDS if c.startswith("FOVEA_KEYS_FILE=")]:
        assignment, _, *rest = shlex.split(line)
        monkeypatch.setenv("FOVEA_KEYS_FILE", str(tmp_path / assignment.partition("=")[2]))
        code, _, err = fovea(*rest)
        assert code == 0, err
    assert (tmp_path / "keys.json").exists()


def test_compose_commands_and_settings_of_the_page_exist():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf8"))["services"]
    profiles = {profile for body in services.values() for profile in body.get("profiles", ())}
    assert set(re.findall(r"--profile (\w+)", PAGE)) == profiles
    assert set(re.findall(r"--scale ([\w-]+)=", PAGE)) <= set(services)
    [run] = begin_with("docker", "compose", "run")
    assert shlex.split(run)[4] in services
    known = {f"FOVEA_{name.upper()}" for name in Settings.model_fields} | {"FOVEA_API_KEY"}
    assert set(re.findall(r"FOVEA_[A-Z_]+", PAGE)) <= known
