"""Setup of the whole suite: how it runs (tests/harness) and in which order.

`make test` hands each of two workers a half of the suite, in order (`--dist worksteal`), so that a file's fixtures are
built once. One worker gets everything that starts whole products and clusters: two at once would take the processor
from each other.
"""

import functools
import importlib.util
import ntpath  # noqa: F401  # Python 3.13's paths import it late, and endlessly where pytester has just taken it away
import os
import pathlib

import httpcore2
import pytest

pytest_plugins = [
    "pytester",
    "tests.harness.browsers",
    "tests.harness.clocks",
    "tests.harness.graphs",
    "tests.harness.hypothesis_profiles",
    "tests.harness.memory",
    "tests.harness.redis_servers",
    "tests.harness.skips",
    "tests.harness.phases",  # imports skips
    "tests.harness.reruns",
]

ROOT = pathlib.Path(__file__).parent
PLATFORMS = ("tests/e2e/", "tests/deploy/")
"""Where tests start a product or a cluster of several processes."""

SLOW = frozenset((ROOT / "tests/slow.txt").read_text("utf8").split())
"""Test functions and whole files that `make check` leaves out, as `python -m tests.slow` found them."""

# Every client of httpx2 reads the machine's certificates, 10 ms of a processor; here they are read once a process.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Do not even import a file of which `make check` runs nothing, nor tests of a plug-in that is not installed."""
    path = str(collection_path).removeprefix(f"{ROOT}/")
    if path.startswith("plugins/"):
        name = path.split("/")[1].partition(".")[0]
        if importlib.util.find_spec(f"fovea_{name}") is None:
            return True
    return True if "not slow" in config.option.markexpr and path in SLOW else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is known to be slow."""
    if not SLOW.isdisjoint((item.nodeid.partition("[")[0], item.nodeid.partition("::")[0])):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts products and clusters first into the last worker's part."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    heavy = [item for item in items if starts_platform(item)]
    light = [item for item in items if not starts_platform(item)]
    first = min(len(items) * (workers - 1) // workers, len(light))
    items[:] = [*light[:first], *heavy, *light[first:]]


def starts_platform(item: pytest.Item) -> bool:
    """Whether a test starts a whole product or a cluster."""
    return item.nodeid.startswith(PLATFORMS) or item.get_closest_marker("e2e") is not None
