"""The console's page of traffic: the share of each version of a service, and its shadow."""

from pathlib import Path

from services.gateway.console.page import Page

page = Page(
    title="Traffic", folder=Path(__file__).parent, module="traffic.js", under="admin", group="Platform", icon="fork"
)
