"""Landmark attention: attention maths, networks, streaming sessions with their block store, and sessions as bytes."""

from services.llm_longctx.mixers.landmark.attention import RetrievedBlock, citations, landmark_softmax
from services.llm_longctx.mixers.landmark.networks import LandmarkGPT, LandmarkLlama
from services.llm_longctx.mixers.landmark.session import LandmarkOutput, LandmarkSession

__all__ = [
    "LandmarkGPT",
    "LandmarkLlama",
    "LandmarkOutput",
    "LandmarkSession",
    "RetrievedBlock",
    "citations",
    "landmark_softmax",
]
