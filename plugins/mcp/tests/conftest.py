"""Gateways with the plug-in: the core's fixtures."""

from services.gateway.tests.conftest import gateway, gateway_settings, ring, stage, toy  # noqa: F401  # fixtures
