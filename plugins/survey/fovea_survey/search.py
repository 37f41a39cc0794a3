"""Damage in the files of a survey: photographs one by one, films frame by frame with tracks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from PIL import Image

from fovea.api.boxes import DEFAULT_CONFIDENCE, DetectIn, Detection, DetectOut
from fovea.errors import BadInput, InvalidOption
from fovea_survey.gpx import Track, parse_gpx
from fovea_survey.places import Place, find_place, heic_to_png, in_zone, read_time
from fovea_survey.placing import make_unique
from fovea_survey.schemas import Observation, SeenObject, SurveyOptions
from fovea_survey.video.flow import BoxCarrier
from fovea_survey.video.stream_pipeline import TRACKING_CONFIDENCE
from fovea_survey.video.tracking import MAX_FRAMES_AWAY, Tracker
from fovea_survey.video.video_decoder import BREAK_OFF, VideoFile
from services.detection.boxes.drawing import draw_boxes
from shared.registry import CallContext
from shared.serving.host import Host
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds, platform_bounds

AT_ONCE = 4
USUAL_FPS = 30.0
"""Of films that do not state it."""

MAX_FRAMES = 20_000
"""Frames that are searched in one film."""

BOXED_SIDE = 1280
"""Longest side of a picture with its boxes."""

File = tuple[str, str, bytes]
"""Field of the form, name, content."""


@dataclass(frozen=True)
class Search:
    """Searches files with a served model, for a call that the answers belong to."""

    host: Host
    options: SurveyOptions
    run: CallContext
    model: str
    bounds: DecodeBounds

    @classmethod
    def of(cls, host: Host, options: SurveyOptions, run: CallContext) -> Search:
        """Prepare a search with the model that the options name, or with the default one."""
        model = host.resolve(options.model, "detect")
        host.servable(model, "detect")
        return cls(host, options, run, model, platform_bounds(host.settings))

    async def observe(self, files: Sequence[File]) -> list[Observation]:
        """Return what the files show, each picture with its place.

        Raises InvalidOption: there is no picture, a film without a track, or more than one film or track.
        """
        names = make_unique([name for _, name, _ in files])
        named = [(field, name, data) for (field, _, data), name in zip(files, names, strict=True)]
        tracks = [data for field, _, data in named if field == "gpx"]
        track = await asyncio.to_thread(parse_gpx, tracks[0]) if tracks else None
        pictures = [(name, data) for field, name, data in named if field not in {"gpx", "video"}]
        films = [(name, data) for field, name, data in named if field == "video"]
        if not pictures and not films:
            hint = "Send photographs as `images`, or a film as `video`."
            raise InvalidOption("There is no picture.", hint=hint, field="images")
        if films and track is None:
            raise InvalidOption("A film has no places of its own.", hint="Send its track as `gpx`.", field="gpx")
        if len(films) > 1:
            hint = "Send each alone with its `start`, and then the `observations` of all answers together."
            raise InvalidOption("Several films can't begin at the same place of a track.", hint=hint, field="video")
        if len(tracks) > 1:
            raise InvalidOption("There are several tracks.", hint="Join them in one GPX file.", field="gpx")
        found: list[Observation] = []
        for begin in range(0, len(pictures), AT_ONCE):
            self.run.check()
            self.run.progress(begin / len(pictures), f"{begin} of {len(pictures)} pictures")
            part = pictures[begin : begin + AT_ONCE]
            found += await asyncio.gather(*(self._look(name, data, track) for name, data in part))
        for name, data in films:
            found += await _FilmSearch(self, name, cast("Track", track)).watch(data)
        return found

    async def detect(self, picture: bytes, confidence: float | None) -> DetectOut:
        """Find objects in one picture."""
        options = self.options
        asked: dict[str, Any] = {"model": self.model, "iou": options.iou, "classes": options.classes}
        request = DetectIn(image=picture, confidence=confidence, **asked)
        return cast("DetectOut", await self.host.predict_when_free(self.model, request, self.run))

    async def draw(self, picture: bytes, found: Sequence[Detection]) -> bytes | None:
        """Return the picture with its boxes as base64 of a JPEG, if the options ask for it and there are any."""
        if not self.options.boxed or not found:
            return None
        return base64.b64encode(await asyncio.to_thread(draw_boxed, picture, found, self.bounds))

    async def _look(self, name: str, data: bytes, track: Track | None) -> Observation:
        place, time = await asyncio.to_thread(lambda: (find_place(data), read_time(data)))
        if time is not None and time.tzinfo is None and self.options.zone is not None:
            time = in_zone(time, self.options.zone)
        if isinstance(place, str) and track is not None and time is not None:
            place = self._place_by(track, time, place)
        facts = {"time": time, **_place_facts(place)}
        try:
            picture = await asyncio.to_thread(heic_to_png, data, self.bounds)
            found = await self.detect(picture, self.options.confidence)
        except BadInput as error:
            return Observation(name=name, **facts, problem=_problem_of(error))
        seen = [see(one, found) for one in found.detections]
        boxed = await self.draw(picture, found.detections)
        return Observation(name=name, **facts, detections=seen, boxed=boxed)

    @staticmethod
    def _place_by(track: Track, time: dt.datetime, problem: str) -> Place | str:
        """The place of a track at a time, or why there is none; a time without a zone could be hours off."""
        if time.tzinfo is None:
            return f"{problem[:-1]}, and its time has no zone, so the track can't place it (option `zone`)."
        return track.locate(time) or f"{problem[:-1]}, and the track has no place at its time."


def _problem_of(error: BadInput) -> str:
    """Say what is wrong with a picture; an error about the options is raised, as no picture would be searched."""
    if error.field not in {None, "image", "images"}:
        raise error
    return error.detail


def see(one: Detection, found: DetectOut, track: str | None = None) -> SeenObject:
    """Return a detection as a survey keeps it, with its share of the picture."""
    x1, y1, x2, y2 = one.box
    share = max(x2 - x1, 0) * max(y2 - y1, 0) / max(found.width * found.height, 1)
    score, size = min(one.score, 1.0), round(min(share, 1.0), 6)
    return SeenObject(label=one.label, score=score, box=one.box, size=size, track=track)


def draw_boxed(picture: bytes, found: Sequence[Detection], bounds: DecodeBounds) -> bytes:
    """Return a picture with its boxes as JPEG, at most `BOXED_SIDE` long."""
    pixels = decode(picture, bounds).pixels
    scale = min(1.0, BOXED_SIDE / max(pixels.shape[:2]))
    if scale < 1:
        size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    moved = [one.model_copy(update={"box": tuple(side * scale for side in one.box)}) for one in found]
    return encode(draw_boxes(pixels, moved), "image/jpeg", quality=80)


def time_frame(start: dt.datetime, seconds: float) -> dt.datetime:
    """Return when a frame was taken, as UTC where the start states no zone.

    Raises InvalidOption: the time is outside of the calendar.
    """
    zoned = start if start.tzinfo else start.replace(tzinfo=dt.UTC)
    try:
        return zoned.astimezone(dt.UTC) + dt.timedelta(seconds=seconds)
    except OverflowError as error:
        detail = f"A film that starts at {start.isoformat()} leaves the years that there are."
        raise InvalidOption(detail, hint="Give its `start`, and its `fps`.", field="start") from error


@dataclass
class _FilmSearch:
    """Searches every N-th frame of a film; tracks tell damage that was seen before, and flow carries them between."""

    search: Search
    name: str
    track: Track
    carrier: BoxCarrier = field(default_factory=BoxCarrier)
    best: dict[str, tuple[float, int, bytes]] = field(default_factory=dict)

    async def watch(self, data: bytes) -> list[Observation]:
        """Return what the searched frames show, placed by the track.

        Raises InvalidOption: too many frames would be searched.
        """
        options, run, found = self.search.options, self.search.run, list[Observation]()
        least = self._least_confidence()
        tracker = Tracker(least, max(1, MAX_FRAMES_AWAY // options.every))
        prefix = hashlib.sha256(data).hexdigest()[:8]
        film = await asyncio.to_thread(VideoFile, data, self.search.bounds)
        start = options.start or self.track.start
        with contextlib.closing(film):
            if film.count > MAX_FRAMES * options.every:
                detail = f"{film.count // options.every:,} frames would be searched; at most {MAX_FRAMES:,} are."
                raise InvalidOption(detail, hint="Raise `every`, or cut the film.", field="every")
            frames = iter(film)
            number = 0
            while (picture := await asyncio.to_thread(next, frames, None)) is not None:
                tracker.carry(await asyncio.to_thread(self.carrier.step, picture, tracker.boxes))
                if (number % options.every == 0 and len(found) < MAX_FRAMES) or picture == BREAK_OFF:
                    run.check()
                    run.progress(number / film.count if film.count else 0.0, f"frame {number} of {film.count or '?'}")
                    known = None if options.fps else film.seconds
                    seconds = number / (options.fps or film.fps or USUAL_FPS) if known is None else known
                    time = time_frame(start, seconds)
                    found.append(await self._look(number, len(found), picture, time, tracker, prefix))
                number += 1
        for _, place, boxed in self.best.values():
            found[place] = found[place].model_copy(update={"boxed": base64.b64decode(boxed)})
        return found

    def _least_confidence(self) -> float:
        """The score from which a detection counts: the one that was asked for, or the model's own."""
        asked = self.search.options.confidence
        details = self.search.host.servable(self.search.model).details()
        return asked if asked is not None else float(details.get("confidence", DEFAULT_CONFIDENCE))

    async def _look(
        self, number: int, place: int, picture: bytes, time: dt.datetime, tracker: Tracker, prefix: str
    ) -> Observation:
        name, located = f"{self.name}#{number}", self.track.locate(time)
        facts = _place_facts(located or "The track has no place at its time.")
        facts |= {"time": time}
        if picture == BREAK_OFF:
            return Observation(name=name, **facts, problem="The film breaks off here; the rest was not searched.")
        try:
            found = await self.search.detect(picture, min(tracker.certain, TRACKING_CONFIDENCE))
        except BadInput as error:
            return Observation(name=name, **facts, problem=_problem_of(error))
        rows = np.array([[*one.box, one.score, one.class_id] for one in found.detections], np.float64).reshape(-1, 6)
        tracked = [
            (one, f"{prefix}-{track}")
            for one, track in zip(found.detections, tracker.update(rows), strict=True)
            if track is not None
        ]
        better = [track for one, track in tracked if one.score > self.best.get(track, (0.0,))[0]]
        boxed = await self.search.draw(picture, [one for one, _ in tracked]) if better else None
        if boxed is not None:
            self.best |= {track: (one.score, place, boxed) for one, track in tracked if track in better}
        return Observation(name=name, **facts, detections=[see(one, found, track) for one, track in tracked])


def _place_facts(place: Place | str) -> dict[str, Any]:
    """Fields of an observation: its place, or why it has none."""
    if isinstance(place, str):
        return {"place_problem": place}
    return {"latitude": place.latitude, "longitude": place.longitude}
