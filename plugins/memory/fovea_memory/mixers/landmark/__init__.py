"""Landmark attention: attention maths, networks, streaming sessions with their block store, and sessions as bytes."""

from fovea_memory.mixers.landmark.attention import RetrievedBlock, citations, landmark_softmax
from fovea_memory.mixers.landmark.networks import LandmarkGPT, LandmarkLlama
from fovea_memory.mixers.landmark.session import LandmarkOutput, LandmarkSession

__all__ = [
    "LandmarkGPT", "LandmarkLlama", "LandmarkOutput", "LandmarkSession", "RetrievedBlock", "citations",
    "landmark_softmax",
]  # fmt: skip
