"""Segments of time: sampling grid, soft NMS, feature files and plots of video answers."""
