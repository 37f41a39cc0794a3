"""All fuzz harnesses by name: of each file in `decoders`, and of each installed plug-in's `tests/fuzz_harnesses.py`."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import decoders
from tests.fuzz.harness import Harness

PLUGINS = Path(__file__).parents[2] / "plugins"


def _modules() -> Iterator[str]:
    for module in sorted(info.name for info in pkgutil.iter_modules(decoders.__path__)):
        yield f"{decoders.__name__}.{module}"
    for plugin in sorted(file.parts[-3] for file in PLUGINS.glob("*/tests/fuzz_harnesses.py")):
        if find_spec(f"fovea_{plugin}") is not None:
            yield f"plugins.{plugin}.tests.fuzz_harnesses"


HARNESSES: dict[str, Harness] = {
    name: harness for module in _modules() for name, harness in importlib.import_module(module).HARNESSES.items()
}
"""Name → harness."""
