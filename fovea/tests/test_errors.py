"""Errors, and the import of the package."""

import subprocess
import sys

import grpc

from fovea import errors
from fovea.api.problem import oip_error, openai_error
from fovea.errors import InvalidOption, by_status


def test_each_class_has_a_status_and_a_code_of_grpc():
    for cls in [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FoveaError)]:
        assert (400 <= cls.status < 600, cls.grpc in grpc.StatusCode.__members__) == (True, True), cls


def test_other_bodies_are_one_sentence_and_an_unknown_status_a_kind():
    body = openai_error(InvalidOption("top_p is 3.", hint="Use 0 to 1.", field="top_p"), "r1")["error"]
    assert (body["param"], body["message"]) == ("top_p", "top_p is 3. Use 0 to 1.")
    assert body["type"] == "invalid_request_error"
    assert oip_error(InvalidOption("bad shape.")) == {"error": "bad shape."}
    assert by_status(418).status == 400
    assert by_status(599).status == 500


HEAVY = (
    "torch", "numpy", "onnxruntime", "transformers", "ray", "fastapi", "starlette", "aiohttp", "redis", "grpc",
    "PIL", "jinja2", "prometheus_client", "structlog", "shared.settings", "shared.telemetry", "shared.registry",
)  # fmt: skip

PROBE = """
import sys, time
begun = time.perf_counter()
import {module}
print(time.perf_counter() - begun)
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def probe(module: str) -> tuple[float, str]:
    code = PROBE.format(module=module, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, loaded = ran.stdout.splitlines()
    return float(seconds), loaded


def test_the_client_and_the_command_load_nothing_heavy():
    attempts = [probe("fovea") for _ in range(3)]
    assert {loaded for _, loaded in attempts} == {""}
    # The best of three, with room for a busy machine; a torch import alone takes longer.
    assert min(seconds for seconds, _ in attempts) < 1.0
    assert probe("fovea.cli.main")[1] == ""
