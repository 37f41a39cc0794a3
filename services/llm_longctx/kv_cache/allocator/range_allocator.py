"""Range allocator: hands out consecutive numbers and takes them back, first fit.

Knows nothing about what they number.
"""

from bisect import bisect_left, insort


class RangeAllocator:
    """Free ranges of the numbers 0 … size-1, kept in order and joined where they touch."""

    def __init__(self, size: int) -> None:
        self._free: list[tuple[int, int]] = [(0, size)] if size else []

    @property
    def free(self) -> int:
        """How many numbers are free."""
        return sum(end - begin for begin, end in self._free)

    def take(self, count: int) -> int | None:
        """The beginning of `count` consecutive free numbers, or None where no range is long enough."""
        for i, (begin, end) in enumerate(self._free):
            if end - begin >= count:
                self._free[i : i + 1] = [(begin + count, end)] if begin + count < end else []
                return begin
        return None

    def give(self, begin: int, count: int) -> None:
        """Take back numbers that were handed out. Raises ValueError: some of them are free already."""
        end, at = begin + count, bisect_left(self._free, (begin, 0))
        before = self._free[at - 1] if at else (-1, -1)
        after = self._free[at] if at < len(self._free) else (end + 1, end + 1)
        if before[1] > begin or after[0] < end:
            raise ValueError(f"numbers {begin} … {end - 1} are given back twice")
        if before[1] == begin:
            self._free.remove(before)
            begin = before[0]
        if after[0] == end:
            self._free.remove(after)
            end = after[1]
        insort(self._free, (begin, end))
