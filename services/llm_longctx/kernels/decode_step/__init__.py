"""A whole decode step of a Llama-like decoder in one call, its matrices in the decoder's type or in few bits.

The oracle is the decoder itself, run by torch. Knows decoders, packed matrices and runs of entries; knows nothing about
methods or who owns pages.
"""

from services.llm_longctx.kernels.decode_step.cpu_ext import HEAD, NativeDecoder, is_supported
from services.llm_longctx.kernels.decode_step.pieces import ADDABLE_SITES, Addition
from services.llm_longctx.kernels.decode_step.runs import EntryRuns

__all__ = ["ADDABLE_SITES", "HEAD", "Addition", "EntryRuns", "NativeDecoder", "is_supported"]
