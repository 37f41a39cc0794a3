"""Segments of time: BMN's sampling grid and labels, soft NMS, feature files and plots of video answers."""

from fovea_actions.segments.proposals import boundary_labels, sampling_mask, soft_nms

__all__ = ["boundary_labels", "sampling_mask", "soft_nms"]
