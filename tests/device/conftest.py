"""One thread, and Triton's interpreter: the models here are too small for two threads, and there is no card."""

from services.llm_longctx.tests.conftest import one_thread  # noqa: F401  # a fixture; its module sets the interpreter
