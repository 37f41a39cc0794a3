"""The product starts, shows its first light, says clearly what is wrong, and leaves nothing behind."""

import json
import socket

import pytest

from tests.e2e.conftest import free_port, left_behind, start, stop, wait_ready

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_first_light_writes_a_picture_and_json_for_each_service(product):
    out = product.folder / "out"
    for service in ("medical-seg", "llm-longctx"):
        files = list((out / service).iterdir())
        assert any(file.suffix == ".json" and json.loads(file.read_text("utf8")) for file in files), service
    assert any(file.suffix == ".png" and file.stat().st_size > 1000 for file in (out / "medical-seg").iterdir())
    assert f":{product.http}" in product.log


def test_once_ends_with_0_and_leaves_no_process(tmp_path):
    made = start(tmp_path, "--once", FOVEA_ENABLED_SERVICES="medical-seg")
    assert made.process.wait(240) == 0, made.log
    assert left_behind(tmp_path) == []


def test_ctrl_c_stops_everything_in_time(tmp_path):
    made = start(tmp_path, FOVEA_ENABLED_SERVICES="medical-seg")
    wait_ready(made)
    assert stop(made) == []
    assert left_behind(tmp_path) == []
    assert made.process.returncode in {0, 130}


def test_port_in_use_is_one_clear_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        made = start(tmp_path, FOVEA_HTTP_PORT=str(port))
        assert made.process.wait(60) != 0
    assert str(port) in made.log
    assert "FOVEA_HTTP_PORT" in made.log
    assert "Traceback" not in made.log
    assert free_port() != port
