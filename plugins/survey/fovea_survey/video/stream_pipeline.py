"""Frames in, answers out, while the frames still arrive: a bounded queue between reading and detecting.

Either every frame is answered and the sender is held back, or the oldest are dropped when newer ones have arrived;
each answer says how many were left out before it. Knows nothing about HTTP and nothing about networks.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fovea.api.boxes import DEFAULT_CONFIDENCE, DetectedFrame, DetectIn, Detection, DetectOptions, DetectOut
from fovea.api.problem import problem
from fovea.errors import DeadlineExceeded, FoveaError
from fovea_survey.video.frame_parsers import FrameParser
from fovea_survey.video.tracking import Tracker
from fovea_survey.video.video_decoder import BREAK_OFF
from services.detection.boxes.detections import count_by_class

TRACKING_CONFIDENCE = 0.1
"""Score from which a detection may continue a track, though it begins none and is left out unless it does."""


class DetectStreamOptions(DetectOptions):
    """How to search the frames of a stream."""

    drop: Literal["none", "oldest"] = Field(
        "none",
        description="`none` answers every frame and holds the sender back; `oldest` drops the frames that have waited "
        "longest when newer ones arrive, for live pictures.",
    )
    every: int = Field(1, ge=1, le=1000, description="Only every so many-th frame is looked at.")
    queue: int = Field(4, ge=1, le=64, description="Most frames that wait.")
    track: bool = Field(True, description="Give the same object the same track_id in all frames.")


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """An encoded frame, its number, and how many before it were dropped since the last one that was taken."""

    number: int
    data: bytes
    dropped: int


class FrameQueue:
    """The frames that wait."""

    def __init__(self, room: int, drop: Literal["none", "oldest"], every: int = 1) -> None:
        self._every = every
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._room, self._drop = room, drop
        self._arrived = 0
        self._dropped = 0
        self._closed = False
        self._fault: BaseException | None = None
        self._changed = asyncio.Condition()

    async def put(self, data: bytes) -> None:
        """Add a frame; waits for room, or makes some. One that is not to be looked at is only counted."""
        if self._arrived % self._every and data != BREAK_OFF:
            self._arrived += 1
            return
        async with self._changed:
            if self._drop == "oldest":
                while len(self._waiting) >= self._room:
                    self._waiting.popleft()
                    self._dropped += 1
            await self._changed.wait_for(lambda: len(self._waiting) < self._room)
            self._waiting.append((self._arrived, data))
            self._arrived += 1
            self._changed.notify_all()

    async def close(self, fault: BaseException | None = None) -> None:
        """No more frames come, because of `fault` where there is one."""
        async with self._changed:
            self._closed, self._fault = True, fault
            self._changed.notify_all()

    async def get(self) -> EncodedFrame | None:
        """The frame that has waited longest; None when the stream has ended.

        Raises BaseException: the error that ended it, once the frames before are taken.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                if self._fault is not None:
                    raise self._fault
                return None
            number, data = self._waiting.popleft()
            dropped, self._dropped = self._dropped, 0
            self._changed.notify_all()
            return EncodedFrame(number, data, dropped)


Detect = Callable[[DetectIn], Awaitable[DetectOut]]


async def detect_frames(
    chunks: AsyncIterator[bytes], parser: FrameParser, options: DetectStreamOptions, detect: Detect
) -> AsyncGenerator[tuple[DetectedFrame, bytes], None]:
    """One answer per frame that is not dropped, in order, and the frame itself.

    A frame that can't be read is answered by its problem, and the stream goes on. Raises FoveaError: the stream itself
    is broken: too large a frame, or the caller went away.
    """
    queue = FrameQueue(options.queue, options.drop, options.every)
    reader = asyncio.create_task(_fill(queue, chunks, parser))
    answerer = _FrameAnswerer(options, detect)
    try:
        while (frame := await queue.get()) is not None:
            yield await answerer.answer(frame), frame.data
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader


async def _fill(queue: FrameQueue, chunks: AsyncIterator[bytes], parser: FrameParser) -> None:
    try:
        async for chunk in chunks:
            await _put(queue, parser.feed(chunk))
        await _put(queue, parser.close())
    except Exception as error:  # noqa: BLE001  # raised again in the reader
        await queue.close(error)
    else:
        await queue.close()


async def _put(queue: FrameQueue, frames: Iterator[bytes]) -> None:
    """Add frames as they are found; finding the next one of a video takes a while, so a thread does it."""
    while (data := await asyncio.to_thread(next, frames, None)) is not None:
        await queue.put(data)


class _FrameAnswerer:
    """Answers frames in order; remembers tracks and how many were dropped."""

    def __init__(self, options: DetectStreamOptions, detect: Detect) -> None:
        self._options, self._detect = options, detect
        least = DEFAULT_CONFIDENCE if options.confidence is None else options.confidence
        self._tracker = Tracker(least) if options.track else None
        self._dropped = 0
        shown = options.model_dump(include=set(DetectOptions.model_fields))
        if self._tracker is not None:
            shown["confidence"] = min(least, TRACKING_CONFIDENCE)
        self._detect_options = shown

    async def answer(self, frame: EncodedFrame) -> DetectedFrame:
        self._dropped += frame.dropped
        head = {"frame": frame.number, "dropped": frame.dropped, "dropped_total": self._dropped}
        try:
            found = await self._detect(DetectIn(image=frame.data, **self._detect_options))
        except DeadlineExceeded:
            raise
        except FoveaError as error:
            if error.status >= 500 or error.status == 499 or error.field not in {None, "image"}:
                raise
            return DetectedFrame(**head, problem=problem(error).model_dump(mode="json", exclude_none=True))
        shown = self._tracked(found)
        return DetectedFrame(
            **head,
            width=found.width,
            height=found.height,
            detections=shown,
            counts=count_by_class(shown),
            times=found.times,
        )

    def _tracked(self, found: DetectOut) -> list[Detection]:
        """The detections with their ids; the uncertain ones only where they continue a track."""
        if self._tracker is None:
            return found.detections
        rows = np.array([[*d.box, d.score, d.class_id] for d in found.detections], np.float64).reshape(-1, 6)
        ids = self._tracker.update(rows)
        return [
            each.model_copy(update={"track_id": track})
            for each, track in zip(found.detections, ids, strict=True)
            if track is not None
        ]
