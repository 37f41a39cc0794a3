"""Settings are read from FOVEA_ variables once, typed, and refused when they make no sense."""

import pathlib
import re

import pytest
from pydantic import ValidationError

from shared.settings import Settings

ROOT = pathlib.Path(__file__).parents[2]


def test_defaults_bind_to_loopback_and_need_no_key(monkeypatch):
    for name in ("FOVEA_HOST", "FOVEA_AUTH"):
        monkeypatch.delenv(name, raising=False)
    made = Settings()
    assert (made.host, made.bind, made.auth) == ("127.0.0.1", "127.0.0.1", "insecure-local")


def test_environment_wins_over_defaults(monkeypatch):
    monkeypatch.setenv("FOVEA_HTTP_PORT", "9000")
    assert Settings().http_port == 9000


@pytest.mark.parametrize(
    ("name", "value"), [("FOVEA_HTTP_PORT", "70000"), ("FOVEA_BATCH_MAX", "0"), ("FOVEA_AUTH", "off")]
)
def test_nonsense_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_fixed_upstreams_carry_http_and_grpc():
    made = Settings(upstreams="detection=http://triton:8000/|grpc://triton:8001, medical-seg=http://seg:80")
    assert made.fixed_upstreams == {
        "detection": ("http://triton:8000", "triton:8001"),
        "medical-seg": ("http://seg:80", None),
    }


def test_every_field_says_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_nobody_else_reads_the_environment():
    reads = re.compile(r"os\.environ|getenv\(")
    code = [
        p for room in ("fovea", "shared", "services") for p in (ROOT / room).rglob("*.py") if "tests" not in p.parts
    ]
    assert [str(p) for p in code if reads.search(p.read_text("utf8")) and p.name != "settings.py"] == []
