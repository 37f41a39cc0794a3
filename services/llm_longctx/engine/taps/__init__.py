"""Taps of served requests: what one changes and reads inside the decoder while it is served next to others.

Sites, edits and their application are those of `shared.lm`. Knows pages and steps; knows nothing about text or HTTP.
"""

from services.llm_longctx.engine.taps.request_taps import (
    ActivationCapture,
    AttentionCapture,
    Capture,
    CaptureSize,
    LensCapture,
    PlacedEdit,
    RequestTaps,
)
from services.llm_longctx.engine.taps.sequence_taps import CapturedTokens, SequenceTaps
from services.llm_longctx.engine.taps.token_range import TokenRange

__all__ = [
    "ActivationCapture", "AttentionCapture", "Capture", "CaptureSize", "CapturedTokens", "LensCapture", "PlacedEdit",
    "RequestTaps", "SequenceTaps", "TokenRange",
]  # fmt: skip
