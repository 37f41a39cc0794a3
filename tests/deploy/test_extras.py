"""Extras bring all that a service imports: whatever else is installed here is hidden, plug-ins too."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from tests.deploy.test_hashes import hashes, needed

HIDDEN = """
import importlib.abc, importlib.metadata, json, sys

class Hidden(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not among what the extras bring", name=name)

sys.meta_path.insert(0, Hidden(set(json.loads(sys.argv[1]))))
"""
"""Takes away the modules that the first argument names."""

HIDE = (
    HIDDEN
    + """
points = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **which: importlib.metadata.EntryPoints(
    point for point in points(**which) if point.dist.name == "fovea-platform"
)
"""
)
REPLICA = """
import shared.serving.__main__, shared.serving.worker, shared.serving.drain, shared.serving.health_check
from shared.registry.discovery import servables
from shared.serving.replica import load_app
servables({service!r})
load_app({service!r})
"""
GATEWAY = "import services.gateway.__main__, shared.serving.health_check"
CASES = [
    ("gateway", "", GATEWAY),
    *(
        (service, flavour, REPLICA.format(service=service))
        for service, flavours in {
            "medical-seg": ("cpu", "onnx"), "vision-restoration": ("cpu", "onnx"), "detection": ("cpu",),
            "llm-longctx": ("cpu",), "interpretability": ("cpu",), "relevance-judge": ("cpu",),
        }.items()
        for flavour in flavours
    ),
]  # fmt: skip


def hidden_modules(extras):
    """Top-level modules that only packages bring which these extras do not need."""
    kept = needed(extras) | {"fovea-serve", "fovea-platform", "pip", "setuptools"}
    found = metadata.packages_distributions()
    return sorted(name for name, owners in found.items() if not kept & {hashes.normalise(one) for one in owners})


@pytest.mark.parametrize(("service", "flavour", "program"), CASES, ids=[f"{s}-{f}" for s, f, _ in CASES])
def test_a_service_starts_with_what_its_extras_bring(service, flavour, program):
    hidden = hidden_modules({service, flavour} - {""})
    assert "pytest" in hidden
    done = subprocess.run(
        [sys.executable, "-c", HIDE + program, json.dumps(hidden)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
