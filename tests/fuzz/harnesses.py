"""All fuzz harnesses by name: those of each file in `decoders`, so that a new decoder is one new file."""

import importlib
import pkgutil

from tests.fuzz import decoders
from tests.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {
    name: harness
    for module in sorted(info.name for info in pkgutil.iter_modules(decoders.__path__))
    for name, harness in importlib.import_module(f"{decoders.__name__}.{module}").HARNESSES.items()
}
"""Name → harness."""
