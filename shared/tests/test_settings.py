"""Settings are read from FOVEA_ variables once, typed, and refused when they make no sense."""

import os
import pathlib
import re

import pytest
from pydantic import SecretStr, ValidationError

from shared.settings import RENAMED, Settings, environment, settings

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "value"), [
    ("FOVEA_HTTP_PORT", "70000"), ("FOVEA_MAX_BATCH_SIZE", "0"), ("FOVEA_AUTH", "off"), ("FOVEA_HTTP_PORT", "web"),
    ("FOVEA_LOG_LEVEL", "loud"), ("FOVEA_DEVICE", "gpu"), ("FOVEA_STATIC_UPSTREAMS", "detection"),
    ("FOVEA_STATIC_UPSTREAMS", "detection=triton:8000"), ("FOVEA_REDIS_URL", "cache:6379"),
    ("FOVEA_REDIS_URL", "redis://:s3/cret@cache:6379/0"), ("FOVEA_REDIS_URL", "redis://:s3#cret@cache:6379/0"),
    ("OTEL_SDK_DISABLED", "perhaps"), ("FOVEA_REDIS_URL_FILE", "/none"), ("FOVEA_REQUEST_TIMEOUT_S", "inf"),
    ("FOVEA_OBJECT_STORE", "/mnt/store"), ("FOVEA_REDIS_URL", "redis://cache:65536/0"),
    ("FOVEA_REPLICA_SECRET", "geheimß"), ("FOVEA_REDIS_URL_FILE", os.devnull), ("FOVEA_REDIS_MAX_BYTES", "1"),
])  # fmt: skip
def test_nonsense_ends_a_process_with_the_name_of_the_setting(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    with pytest.raises(SystemExit) as ended:
        settings()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (value if name.endswith("_FILE") else name) in line


@pytest.mark.parametrize(("field", "value"), [
    ("log_level", "debug"), ("device", "cuda:3"), ("redis_url", "redis+sentinel://a:1,b:2/m/0"),
    ("redis_url", "rediss://:p@h:1/0"), ("redis_url", "redis://[::1]:6379?db=2"), ("redis_url", "unix:///r.sock"),
    ("static_upstreams", "a=https://b"), ("static_upstreams", ""),
    ("static_upstreams", " a=http://b:1|c:2 , d=http://e ,"),
])  # fmt: skip
def test_settings_in_each_of_their_forms_are_taken(field, value):
    assert getattr(Settings(**{field: value}), field) == value
    made = Settings(static_upstreams="detection=http://triton:8000/|grpc://triton:8001, medical-seg=http://seg:80")
    known = {"detection": ("http://triton:8000", "triton:8001"), "medical-seg": ("http://seg:80", None)}
    assert made.upstream_addresses == known


def test_a_path_in_an_env_file_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    for name, value in {
        "DATA_DIR": "~/state",
        "KEYS_FILE": "~/k.json",
        "LLM_MODEL": "~/m",
        "LLM_ADAPTERS": "/~/a",
    }.items():
        monkeypatch.setenv(f"FOVEA_{name}", value)
    made = Settings()
    assert made.object_store_url == "file:///home/ada/state"
    found = (made.keys_path, made.llm_model, made.llm_adapters)
    assert [*map(str, found)] == ["/home/ada/k.json", "/home/ada/m", "/~/a"]


@pytest.mark.parametrize("new", sorted(RENAMED.keys() - {"up_api_key"}))
def test_old_name_of_a_setting_still_works_and_names_the_new_one(monkeypatch, caplog, new):
    old, default = RENAMED[new], Settings.model_fields[new].get_default()
    text = "a=http://s3cret" if new == "static_upstreams" else "s3cret"
    value = {bool: True, int: 7, float: 0.25}.get(type(default), text)
    monkeypatch.setenv(f"FOVEA_{old.upper()}", str(value))
    with pytest.warns(DeprecationWarning, match=f"FOVEA_{old.upper()} .*FOVEA_{new.upper()}"):
        made = Settings()
    found = getattr(made, new)
    assert (found.get_secret_value() if isinstance(found, SecretStr) else found) == value
    assert new in made.model_fields_set
    assert f"FOVEA_{new.upper()}" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_new_name_of_a_setting_wins_over_the_old_one_and_child_processes_are_given_it(monkeypatch):
    monkeypatch.setenv("FOVEA_BATCH_MAX", "3")
    monkeypatch.setenv("FOVEA_MAX_BATCH_SIZE", "5")
    with pytest.warns(DeprecationWarning, match="FOVEA_MAX_BATCH_SIZE"):
        assert Settings().max_batch_size == 5
    monkeypatch.setenv("FOVEA_DRAIN_S", "3")
    assert environment(FOVEA_X="1") == {**environment(), "FOVEA_X": "1"}
    assert environment()["FOVEA_SHUTDOWN_GRACE_S"] == "3"
    assert "FOVEA_DRAIN_S" not in environment()
    assert environment(FOVEA_SHUTDOWN_GRACE_S="4")["FOVEA_SHUTDOWN_GRACE_S"] == "4"


@pytest.mark.parametrize(("typed", "meant"), [
    ("FOVEA_MAX_BATCHSIZE", "FOVEA_MAX_BATCH_SIZE"), ("fovea_loglevel", "FOVEA_LOG_LEVEL"),
    ("FOVEA_DEADLINE", "FOVEA_REQUEST_TIMEOUT_S"), ("FOVEA_MODEL", "FOVEA_LLM_MODEL"),
    ("FOVEA_HTTP_PORT", None), ("FOVEA_URL", None), ("FOVEA_TRAFFIC", None), ("FOVEA_DICOMWEB_URL", None),
])  # fmt: skip
def test_a_variable_that_is_nearly_a_setting_is_warned_of_and_those_of_clients_and_plugins_are_not(
    monkeypatch, caplog, typed, meant
):
    monkeypatch.setenv(typed, "8080")
    monkeypatch.setenv("FOVEA_API_KEY", "s3cret")  # of the command line: `up` takes it
    settings.cache_clear()
    assert settings().up_api_key.get_secret_value() == "s3cret"
    told = re.findall(r"(\w+) is not a setting: did you mean (\w+)\?", caplog.text)
    assert told == ([(typed.upper(), meant)] if meant else [])
    assert "8080" not in caplog.text
    assert "API_KEY" not in caplog.text


def test_misspelt_field_is_refused_every_field_says_what_it_is_for_and_nobody_else_reads_the_environment():
    with pytest.raises(ValidationError, match="bind"):
        Settings(bind="0.0.0.0")
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    reads = re.compile(r"os\.environ|getenv\(")
    files = [path for room in ("fovea", "shared", "services") for path in (ROOT / room).rglob("*.py")]
    code = (path for path in files if "tests" not in path.parts and path.name != "settings.py")
    assert [str(path) for path in code if reads.search(path.read_text("utf8"))] == []


def test_an_empty_variable_counts_as_unset_as_compose_passes_what_nobody_set(monkeypatch, tmp_path):
    names = ("OBJECT_STORE", "LLM_ADAPTERS", "KEYS_FILE", "JUDGE_API_KEY", "REDIS_URL", "HTTP_PORT", "BIND", "AUTH")
    for name in (*names, "HOST"):
        monkeypatch.setenv(f"FOVEA_{name}", "")
    made = Settings(data_dir=tmp_path)
    assert (made.keys_path, made.weights_dir) == (tmp_path / "keys.json", tmp_path / "weights")
    assert (made.llm_adapters, made.judge_api_key, made.redis_url) == (None, None, None)
    assert (made.http_port, made.host, made.replica_host) == (8080, "127.0.0.1", "127.0.0.1")
    assert made.auth == "insecure-local"
