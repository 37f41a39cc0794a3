"""Ctrl-C ends the product that all tests of this folder used. Comes last, by its name."""

import signal

import psutil
import pytest

pytestmark = [pytest.mark.e2e]


def test_ctrl_c_stops_everything(product):
    family = product.processes()
    assert len(family) > 8, "six replicas, the gateway and Redis"
    product.process.send_signal(signal.SIGINT)
    assert product.process.wait(120) == 0, product.log
    _, alive = psutil.wait_procs(family, 5)
    assert (alive, product.left_behind()) == ([], [])
    assert "Stopping (SIGINT)" in product.log
    assert product.log.rstrip().endswith("Stopped.")
    assert "Traceback" not in product.log
