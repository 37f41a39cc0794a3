"""Gateways with traffic plans: the core's fixtures, and `traffic`, which is the environment's FOVEA_TRAFFIC."""

from typing import Any

import pytest

from services.gateway.tests.conftest import Scene, gateway, gateway_settings, toy  # noqa: F401  # fixtures


@pytest.fixture
def planned(gateway, monkeypatch):  # noqa: F811
    """Starts gateways as `gateway` does; `traffic` are the plans as JSON."""

    async def start(traffic: str = "", **changed: Any) -> Scene:
        monkeypatch.setenv("FOVEA_TRAFFIC", traffic)
        return await gateway(**changed)

    return start
