"""A child process that exports graphs: what serves them imports no torch, and the memory is free again afterwards.

Models load side by side; one child exports their graphs one after another, and ends when no thread waits for it.
`python -m shared.export.child` is the child: it reads pickled forms and paths, and writes pickled results.
"""

import importlib
import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from fovea.errors import Fault, FoveaError
from shared.export.parity import Parity


class ExportChild:
    """Exports graphs in a child process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._count = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def export(self, forms: object, path: Path) -> Parity:
        """Export the graph of `ExportedForms` to a path; its FoveaError is raised here, a dead child is a `Fault`."""
        with self._count:
            self._waiting += 1
        try:
            with self._lock:
                answer = self._ask(pickle.dumps((forms, path)))
        finally:
            with self._count:
                self._waiting -= 1
                if not self._waiting:
                    self._end()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, question: bytes) -> Parity | Exception:
        if self._child is None:
            command = [sys.executable, "-m", "shared.export.child"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  # ours
        to_child, from_child = cast("IO[bytes]", self._child.stdin), cast("IO[bytes]", self._child.stdout)
        try:
            to_child.write(question)
            to_child.flush()
            answer: Parity | Exception = pickle.load(from_child)  # noqa: S301  # our own child's
        except (OSError, EOFError, pickle.UnpicklingError):
            code = self._end()
            return Fault(f"The process that exports graphs ended with code {code}.")
        return answer

    def _end(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        with suppress(OSError):
            child.communicate()
        return child.returncode


def main() -> None:
    """Export what is asked for until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get between the answers
    while True:
        try:
            forms, path = pickle.load(sys.stdin.buffer)  # noqa: S301  # our own parent's
        except EOFError:
            return
        try:
            answer: Parity | Exception = importlib.import_module("shared.export.torch_form").export_graph(forms, path)
        except FoveaError as error:
            answer = error
        except Exception as error:  # noqa: BLE001  # of whatever kind, it may not be picklable
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


EXPORT_CHILD = ExportChild()
"""The child of this process."""


if __name__ == "__main__":
    main()
