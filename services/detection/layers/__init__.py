"""Building blocks that several detectors share: convolutions that fuse, aggregation, attention, detection heads."""

from services.detection.layers.attention import PositionAttention, SelfAttention
from services.detection.layers.conv import EPS, MOMENTUM, AveragedConv, Conv, RepConv, fuse_batch_norms
from services.detection.layers.elan import Elan, RepBottleneck, RepCsp, RepElan, SppElan
from services.detection.layers.head import BINS, Integral, raw_maps, towers

__all__ = [
    "BINS", "EPS", "MOMENTUM", "AveragedConv", "Conv", "Elan", "Integral", "PositionAttention", "RepBottleneck",
    "RepConv", "RepCsp", "RepElan", "SelfAttention", "SppElan", "fuse_batch_norms", "raw_maps", "towers",
]  # fmt: skip
