"""Frames of an object: how many there are, and what its functional groups say of each."""

from __future__ import annotations

from pydicom.dataset import Dataset


def count_frames(dataset: Dataset) -> int:
    """Frames of an object; 1 where it does not say, or nothing that is a number."""
    try:
        return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        return 1


def find_functional_item(dataset: Dataset, name: str, index: int) -> Dataset | None:
    """An item of an enhanced object's functional groups: the frame's own, or the shared one."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for group in (*frames[index : index + 1], *shared[:1]):
        sequence = group.get(name)
        if sequence:
            found: Dataset = sequence[0]
            return found
    return None
