"""Pictures to a classifier's input.

Knows arrays; knows no network and no engine.
"""

from __future__ import annotations

import numpy as np

__all__ = ["MEAN", "STD"]

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
"""Of ImageNet, by RGB channel, as a share of 255."""
