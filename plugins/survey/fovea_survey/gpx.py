"""GPX tracks: places by time, for films and for photographs without a place of their own."""

import bisect
import datetime as dt
from dataclasses import dataclass

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from fovea.errors import Malformed
from fovea_survey.places import Place

MAX_GAP_S = 30.0
"""Between two points further apart in time nothing is interpolated."""


@dataclass(frozen=True)
class Track:
    """Points in the order of time."""

    points: tuple[Place, ...]
    times: tuple[float, ...]

    @property
    def start(self) -> dt.datetime:
        """Time of the first point."""
        return dt.datetime.fromtimestamp(self.times[0], dt.UTC)

    def locate(self, time: dt.datetime) -> Place | None:
        """The place at a time, on the line between its neighbours; None outside of the track and in its gaps."""
        at = time.timestamp()
        place = bisect.bisect_left(self.times, at)
        if place < len(self.times) and self.times[place] == at:
            return self.points[place]
        if not 0 < place < len(self.times) or self.times[place] - self.times[place - 1] > MAX_GAP_S:
            return None
        before, after = self.points[place - 1], self.points[place]
        share = (at - self.times[place - 1]) / (self.times[place] - self.times[place - 1])
        across = (after.longitude - before.longitude + 180) % 360 - 180  # the short way over the date line
        longitude = (before.longitude + share * across + 180) % 360 - 180
        return Place(before.latitude + share * (after.latitude - before.latitude), longitude, time=time)


def parse_gpx(data: bytes) -> Track:
    """The track points of a GPX file.

    Raises Malformed: it is not XML, holds entities, or has fewer than two points with a time.
    """
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Malformed("The track can't be read as GPX.", field="gpx") from error
    found: dict[float, Place] = {}
    for point in root.iter():
        if point.tag.rpartition("}")[2] != "trkpt":
            continue
        stamp = next((part.text for part in point if part.tag.rpartition("}")[2] == "time"), None)
        try:
            latitude, longitude = float(point.get("lat", "")), float(point.get("lon", ""))
            time = dt.datetime.fromisoformat(str(stamp).strip())
            zoned = (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
        except (ValueError, OverflowError):  # of years that there are not, behind the offset
            continue
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            found[zoned.timestamp()] = Place(latitude, longitude, time=zoned)
    if len(found) < 2:
        raise Malformed("The track holds no two points with a time.", hint="Export trkpt with time.", field="gpx")
    times = tuple(sorted(found))
    return Track(tuple(found[time] for time in times), times)
