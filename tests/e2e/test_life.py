"""The product starts, sends its first requests, and leaves nothing behind."""

import json

import psutil
import pytest

from shared.registry.discovery import services_with_models
from tests.e2e.conftest import START_S

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

DRAWN = {"vision-restoration", "medical-seg", "detection", "interpretability"}
"""Services whose first answer is also a picture."""


def test_first_requests_write_json_for_each_service_and_a_picture_where_it_draws(product):
    services = services_with_models()
    assert len(services) == 6
    for service in services:
        files = list((product.folder / "out" / service).iterdir())
        assert [json.loads(file.read_text("utf8")) for file in files if file.suffix == ".json"] != [], service
        pictures = [file for file in files if file.suffix == ".png"]
        assert bool(pictures) == (service in DRAWN), service
        assert all(file.stat().st_size > 1000 for file in pictures), service
    assert product.log.count("✓") == 6
    assert f":{product.http}" in product.log


def test_once_ends_with_0_and_leaves_no_process(launch, tmp_path):
    made = launch(tmp_path, "--once", FOVEA_ENABLED_SERVICES="medical-seg")
    assert made.process.wait(START_S) == 0, made.log
    assert made.left_behind() == []


def test_killed_supervisor_leaves_no_process(launch, tmp_path):
    made = launch(tmp_path, FOVEA_ENABLED_SERVICES="medical-seg")
    for words in (["fovea replica", "medical-seg"], ["services.gateway"], ["server", "127.0.0.1"]):
        made.wait_for(lambda words=words: made.processes(*words), START_S)
    family = made.processes()
    made.process.kill()
    made.process.wait()
    _, alive = psutil.wait_procs(family, 120)
    assert (alive, made.left_behind()) == ([], [])
