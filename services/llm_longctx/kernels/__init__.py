"""Attention kernels: one folder per operation, with its float64 reference and its back ends side by side.

Knows tensors, blocks and pages. Knows nothing about requests, methods or who owns memory.
"""

from services.llm_longctx.kernels.block_csr import BlockCsr
from services.llm_longctx.kernels.block_sparse_prefill import block_sparse_prefill
from services.llm_longctx.kernels.decode import (
    DeviceRuns,
    PageTable,
    decode,
    decode_device_runs,
    decode_packed,
    decode_packed_device_runs,
    decode_pages,
    decode_runs,
)
from services.llm_longctx.kernels.decode_step import ADDABLE_SITES, Addition, EntryRuns, NativeDecoder
from services.llm_longctx.kernels.decoder_ops import layer_ops
from services.llm_longctx.kernels.dispatch import backends
from services.llm_longctx.kernels.fp8_linear import LEAST_CAPABILITY, Fp8Matrix, pack_fp8
from services.llm_longctx.kernels.last_query_scores import last_query_scores
from services.llm_longctx.kernels.merge_lse import merge
from services.llm_longctx.kernels.packed_pages import PackedLayout, pack_pages, unpack_pages
from services.llm_longctx.kernels.quantized_linear import PackedMatrix, SmallMatrix, pack
from services.llm_longctx.kernels.sampling import GREEDY_BELOW, RowSettings, SamplingRows, sample
from services.llm_longctx.kernels.window_prefill import window_prefill

__all__ = [
    "ADDABLE_SITES", "GREEDY_BELOW", "LEAST_CAPABILITY", "Addition", "BlockCsr", "DeviceRuns", "EntryRuns", "Fp8Matrix",
    "NativeDecoder", "PackedLayout", "PackedMatrix", "PageTable", "RowSettings", "SamplingRows", "SmallMatrix",
    "backends", "block_sparse_prefill", "decode", "decode_device_runs", "decode_packed", "decode_packed_device_runs",
    "decode_pages", "decode_runs", "last_query_scores", "layer_ops", "merge", "pack", "pack_fp8", "pack_pages",
    "sample", "unpack_pages", "window_prefill",
]  # fmt: skip
