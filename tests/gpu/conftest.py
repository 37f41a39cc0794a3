"""Tests of a card are collected where there is one. `checks` runs on a stand-in everywhere: see `tests/device`."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
