"""Replicas of one machine: each is forked from this process, which has imported what they share, and kept alive.

`python -m shared.serving.up.forked_replicas SERVICE…`. Replicas share the memory of what was imported before the fork,
and start sooner by the time that it took. This process has one thread, and waits for nothing but signals.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shared import telemetry
from shared.settings import Settings, settings

SHARED_MODULES = (
    "shared.serving.__main__", "numpy", "onnxruntime", "scipy.ndimage", "scipy.special", "scipy.spatial",
    "shared.engines.onnx", "shared.serving.oip.grpc", "shared.vision.draw", "shared.vision.servable",
)  # fmt: skip
"""Imported by most services; those that an installation lacks are left out."""

TORCH_SERVICES = ("llm-longctx", "interpretability")
"""Services that run torch: they are forked from a process of their own, which has imported it."""

TORCH_MODULES = ("torch", "shared.lm.decoder", "shared.lm.taps", "shared.lm.tokenizer", "shared.lm.embedder")

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STABLE_S = 60.0  # a replica that lived so long starts again after the first pause


class ForkedReplicas:
    """Starts replicas, a name for each, starts those again that end, and stops all at the end.

    `run` is the work of a replica in its own process; a stopping one may take `grace_s`.
    """

    def __init__(self, services: Sequence[str], run: Callable[[str], None], logs: Path, grace_s: float) -> None:
        self._run = run
        self._logs = logs
        self._grace_s = grace_s
        self._alive: dict[int, tuple[str, float]] = {}
        self._due = [(0.0, service) for service in services]
        self._pauses: dict[str, float] = {}

    def serve(self) -> None:
        """Keep all alive until SIGTERM or SIGINT."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            self._start_due()
            pause = min((at - time.monotonic() for at, _ in self._due), default=3600.0)
            caught = signal.sigtimedwait(_SIGNALS, max(pause, 0.0))
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break
            self._reap(os.WNOHANG)
        self._stop()

    def _start_due(self) -> None:
        due = [service for at, service in self._due if at <= time.monotonic()]
        self._due = [(at, service) for at, service in self._due if service not in due]
        for service in due:
            pid = os.fork()
            if pid == 0:
                self._become(service)
            self._alive[pid] = service, time.monotonic()

    def _become(self, service: str) -> None:
        """Run a replica in this process, which was forked for it; does not return."""
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            _set_title(f"fovea replica {service}")
            log = os.open(self._logs / f"{service}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(log, stream)
            self._run(service)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001  # nothing may return into the parent's loop
            telemetry.log().exception("replica ended")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self, flags: int) -> None:
        """Collect those that have ended, and plan when they start again."""
        while self._alive:
            pid, status = os.waitpid(-1, flags)
            if pid == 0:
                return
            service, since = self._alive.pop(pid)
            lived = time.monotonic() - since
            pause = _FIRST_PAUSE_S if lived > _STABLE_S else self._pauses.get(service, _FIRST_PAUSE_S)
            self._pauses[service] = min(2 * pause, _LONGEST_PAUSE_S)
            self._due.append((time.monotonic() + pause, service))
            code = os.waitstatus_to_exitcode(status)
            telemetry.log().warning("replica ended", service=service, code=code, again_in_s=pause)

    def _stop(self) -> None:
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + self._grace_s
        while self._alive and (left := until - time.monotonic()) > 0:
            signal.sigtimedwait((signal.SIGCHLD,), left)
            self._reap(os.WNOHANG)
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)


def _set_title(title: str) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle(title)


def import_shared(modules: Sequence[str]) -> None:
    """Import modules before the fork; those that are not installed are left out."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a replica must not touch, and so copy, what all share


def main(services: Sequence[str], config: Settings) -> None:
    """Serve, each as often as `replicas` says, until SIGTERM or SIGINT."""
    telemetry.configure_logs(config.log_level, config.log_format)
    import_shared((*SHARED_MODULES, *(TORCH_MODULES if {*services} & {*TORCH_SERVICES} else ())))
    run_replica: Callable[[str], None] = importlib.import_module("shared.serving.__main__").run_replica
    names = [service for service in services for _ in range(config.replicas)]
    logs = config.data_dir / "logs"
    for service in services:
        (logs / f"{service}.log").unlink(missing_ok=True)
    ForkedReplicas(names, run_replica, logs, config.shutdown_grace_s + 5).serve()


if __name__ == "__main__":
    main(sys.argv[1:], settings())
