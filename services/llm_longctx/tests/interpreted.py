"""Triton's kernels in its interpreter: which form they have is settled when their files are imported."""

import contextlib
import sys

import pytest

from services.llm_longctx.kernels import dispatch

KERNELS = "services.llm_longctx.kernels."


def forget() -> None:
    """Make the next call import the kernels anew, and dispatch look again at what there is."""
    for name in [name for name in sys.modules if name.startswith(KERNELS) and "triton" in name]:
        del sys.modules[name]
    for cached in (dispatch._chosen, dispatch._absent):
        cached.cache_clear()


@contextlib.contextmanager
def interpreted(on: bool = True):
    import triton

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(triton.knobs.runtime, "interpret", on)
        stack.callback(forget)
        forget()
        yield patch
