"""A study: reads its files, segments every frame with a served model, and makes SEG and SR of each series."""

import asyncio
import hashlib
import io
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from fovea.api.mask import SegmentIn, SegmentOut
from fovea.errors import BadInput, FoveaError, TooLarge, UnsupportedMedia
from fovea_dicom import derived_objects, schemas
from fovea_dicom.bodies import MAX_UNPACKED_BYTES, NamedFile
from fovea_dicom.burnt_in import inspect_text
from fovea_dicom.derived_objects import MaskFinding
from fovea_dicom.geometry import count_frames, find_edges, find_pixel_size
from fovea_dicom.reading import count_inflated, has_pixels, read_frame, read_object
from fovea_dicom.schemas import BurntInText, FrameOut, InstanceOut, StudyOptions, StudyOut
from fovea_dicom.sources import fill_identity
from fovea_dicom.windowing import GreyWindow, parse_window
from services.medical_seg.postprocess import draw_mask
from shared.registry import CallContext
from shared.vision.decode import decode
from shared.vision.draw import encode
from shared.vision.limits import DecodeBounds

Predict = Callable[[SegmentIn], Awaitable[SegmentOut]]
Packed = NDArray[np.uint8]
"""A mask (h, w / 8), a bit for each pixel: whole bytes for a long film take gigabytes."""

AT_ONCE = 4
MASK_OPTIONS = {"threshold", "normalise", "min_area", "min_peak", "keep_largest"}
"""Options that each frame's request has too."""
SHARED_FACTS = {"empty", "area", "component_count", "max_probability", "mean_probability", "warnings"}
"""Fields of a frame's answer that say what the model's do."""
STRIP_HEIGHT, STRIP_FRAMES = 160, 24
MOST_RENDERED = 200
MOST_NAMED = 20
"""Unreadable files in the error where no file can be read."""
DETECTOR_NOTE = (
    "The pixels' size is that of the detector: areas in mm² are too large by the square of the magnification."
)
TEXT_NOTE = "There may be text in the pixels, such as a name; removing header fields does not remove it."


@dataclass
class _Series:
    """Objects of one series and one size, with what was found in them."""

    objects: list[FileDataset] = field(default_factory=list)
    answers: list[InstanceOut] = field(default_factory=list)
    masks: list[Packed] = field(default_factory=list)
    findings: list[MaskFinding] = field(default_factory=list)
    tiles: list[NDArray[np.uint8]] = field(default_factory=list)


@dataclass(frozen=True)
class StudySegmenter:
    """Segments the structure `label` of studies by a served model's answers to pictures within `bounds`."""

    predict: Predict
    model: str
    version: str
    bounds: DecodeBounds
    label: str = "polyp"

    async def segment(self, files: Sequence[NamedFile], options: StudyOptions, run: CallContext) -> StudyOut:
        """Segment the pictures among files; UnsupportedMedia if none of them is a picture."""
        window = parse_window(options.window)
        objects, skipped = await asyncio.to_thread(sort_out, files)
        groups: dict[tuple[str, ...], _Series] = {}
        total, done = sum(count_frames(one) for _, one in objects), 0

        def advance(frames: int) -> None:
            nonlocal done
            run.check()
            run.progress(done / total, f"{done} of {total} frames")
            done += frames

        for name, one in objects:
            ids = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
            ids += ["SOPInstanceUID"] if count_frames(one) > 1 else []
            key = tuple(str(one.get(name)) for name in ("Rows", "Columns", *ids))
            try:
                await self._segment_object(name, one, groups.setdefault(key, _Series()), options, window, advance)
            except BadInput as error:  # of this object; others, such as a deadline, end the whole study
                if not groups[key].objects:
                    groups.pop(key)
                skipped.append(f"{name}: {error.detail}")
        if not groups:
            raise _refuse(skipped)
        series = [await asyncio.to_thread(self._finish, group, options) for group in groups.values()]
        frames = sum(len(one.frames) for group in series for one in group.instances)
        return StudyOut(model=self.model, version=self.version, series=series, frames=frames, skipped=skipped)

    async def _segment_object(
        self,
        name: str,
        one: FileDataset,
        group: _Series,
        options: StudyOptions,
        window: GreyWindow | None,
        advance: Callable[[int], None],
    ) -> None:
        indices, frames = range(count_frames(one)), list[FrameOut]()
        masks, findings, tiles = list[Packed](), list[MaskFinding](), list[NDArray[np.uint8]]()
        asked: dict[str, Any] = options.model_dump(include=MASK_OPTIONS)
        asked |= {"model": self.model, "include": ("mask",)}
        text = await asyncio.to_thread(lambda: inspect_text(one, read_frame(one, 0, window, self.bounds)))
        parts = [indices[begin : begin + AT_ONCE] for begin in range(0, len(indices), AT_ONCE)]
        coming = asyncio.create_task(asyncio.to_thread(self._read, one, parts[0], window))
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            read = await coming
            advance(len(part))
            if following is not None:  # the next frames are decoded while the network looks at these
                coming = asyncio.create_task(asyncio.to_thread(self._read, one, following, window))
            try:
                answers = await asyncio.gather(*(self.predict(SegmentIn(image=data, **asked)) for _, data in read))
            except BaseException:
                coming.cancel()
                raise
            for index, (picture, _), answer in zip(part, read, answers, strict=True):
                mask = decode(answer.mask or b"", self.bounds).pixels[..., 0] > 0
                size = find_pixel_size(one, index)
                place = len(group.masks) + index
                area = round(answer.area * size.area_mm2, 4) if size else None
                if answer.area:
                    findings.append(
                        MaskFinding(place, answer.area, area, answer.component_count, answer.mean_probability)
                    )
                facts = answer.model_dump(include=SHARED_FACTS)
                if "masks" in options.include:
                    facts["mask"] = answer.mask
                frames.append(FrameOut.model_construct(frame=index + 1, area_mm2=area, **facts))
                masks.append(np.packbits(mask, axis=-1))
                if "strip" in options.include and len(group.tiles) + len(tiles) < STRIP_FRAMES:
                    tiles.append(_shrink(draw_mask(picture, mask)))
        group.objects.append(one)
        group.masks += masks
        group.findings += findings
        group.tiles += tiles
        size = find_pixel_size(one)
        group.answers.append(
            InstanceOut(
                file=name,
                instance=str(one.get("SOPInstanceUID")),
                modality=str(one.get("Modality") or ""),
                rows=one.Rows,
                columns=one.Columns,
                pixel_size=None if size is None else schemas.PixelSizeOut(**asdict(size)),
                edges=find_edges(one),
                burnt_in_text=BurntInText(declared=text.declared, suspected=text.is_suspected, lines=text.lines),
                frames=frames,
            )
        )

    def _read(
        self, one: FileDataset, part: Sequence[int], window: GreyWindow | None
    ) -> list[tuple[NDArray[np.uint8], bytes]]:
        """Frames, and each as a file that costs no time to pack."""
        pictures = [read_frame(one, index, window, self.bounds) for index in part]
        return [(picture, _to_bitmap(picture)) for picture in pictures]

    def _finish(self, group: _Series, options: StudyOptions) -> schemas.SeriesOut:
        warnings = []
        if any(one.burnt_in_text.suspected for one in group.answers):
            warnings.append(TEXT_NOTE)
        if any(size.is_at_detector for size in map(find_pixel_size, group.objects) if size is not None):
            warnings.append(DETECTOR_NOTE)
        if any(one.pixel_size is None for one in group.answers):
            warnings.append("The objects do not state their pixels' size, so areas are in pixels only.")
        segmentation = report = None
        if group.findings and not {"segmentation", "report"}.isdisjoint(options.include):
            try:
                sources = fill_identity(group.objects)
                model, version = self.model[:50], self.version  # descriptions have 64 letters
                masks = _unpack(group.masks, group.objects[0].Columns)
                seg = derived_objects.build_segmentation(sources, masks, label=self.label, model=model, version=version)
                if "segmentation" in options.include:
                    segmentation = derived_objects.to_bytes(seg)
                if "report" in options.include:
                    built = derived_objects.build_report(sources, seg, group.findings, model=model, version=version)
                    report = derived_objects.to_bytes(built)
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                kind = type(error).__name__
                warnings.append(f"The objects lack what a DICOM segmentation must repeat of them ({kind}).")
        return schemas.SeriesOut.model_construct(
            series=str(group.objects[0].get("SeriesInstanceUID")),
            study=str(group.objects[0].get("StudyInstanceUID")),
            instances=group.answers,
            segmentation=segmentation,
            report=report,
            strip=encode(np.concatenate(group.tiles, axis=1), "image/jpeg") if group.tiles else None,
            warnings=warnings,
        )


def render_frames(files: Sequence[NamedFile], bounds: DecodeBounds, window: str | None) -> schemas.PicturesOut:
    """Render each frame as the network would see it.

    Raises UnsupportedMedia: none of the files is a picture; TooLarge: there are more than `MOST_RENDERED` frames.
    """
    grey = parse_window(window)
    objects, skipped = sort_out(files)
    if (count := sum(count_frames(one) for _, one in objects)) > MOST_RENDERED:
        detail = f"There are {count} frames; at most {MOST_RENDERED} are rendered."
        raise TooLarge(detail, hint="Send fewer files, or segment the whole study.", field="files")
    pictures = list[schemas.PictureOut]()
    for name, one in objects:
        try:
            for index in range(count_frames(one)):
                picture = encode(read_frame(one, index, grey, bounds), "image/png")
                instance = str(one.get("SOPInstanceUID"))
                pictures.append(
                    schemas.PictureOut.model_construct(file=name, instance=instance, frame=index + 1, picture=picture)
                )
        except FoveaError as error:
            skipped.append(f"{name}: {error.detail}")
    if not pictures:
        raise _refuse(skipped)
    return schemas.PicturesOut.model_construct(pictures=pictures, skipped=skipped)


def _refuse(skipped: Sequence[str]) -> UnsupportedMedia:
    more = [f"{len(skipped) - MOST_NAMED} more files."] if len(skipped) > MOST_NAMED else []
    hint = " ".join([*skipped[:MOST_NAMED], *more]) or None
    return UnsupportedMedia("There is no picture that can be read.", hint=hint, field="files")


def sort_out(files: Sequence[NamedFile]) -> tuple[list[tuple[str, FileDataset]], list[str]]:
    """Return pictures with their names in the order of series and instances, and why the others were skipped.

    The first of several objects with one UID counts. Missing UIDs are made of the file's bytes, and those of studies
    and series of a patient's first such object, so that masks that come back belong to the same.
    """
    pictures, skipped, known = list[tuple[str, FileDataset]](), list[str](), dict[str, tuple[str, bytes]]()
    made = dict[tuple[str, ...], str]()
    room = MAX_UNPACKED_BYTES
    for name, data in files:
        try:
            room -= count_inflated(data, room)
            found = read_object(data)
        except FoveaError as error:
            skipped.append(f"{name}: {error.detail}")
            continue
        if not found.get("SOPInstanceUID"):
            found.SOPInstanceUID = generate_uid(entropy_srcs=[hashlib.sha256(data).hexdigest()])
        instance = str(found.SOPInstanceUID)
        owner = str(found.get("PatientID")), str(found.get("StudyInstanceUID") or "")
        for level in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not found.get(level):
                uid = generate_uid(entropy_srcs=[instance, level])
                setattr(found, level, made.setdefault((level, *owner), uid))
        if has_pixels(found) and instance in known:
            first, pixels = known[instance]
            is_copy = found.PixelData == pixels
            skipped.append(f"{name}: {'the same object as' if is_copy else 'other pixels under the UID of'} {first}.")
        elif has_pixels(found):
            pictures.append((name, found))
            known[instance] = name, found.PixelData
        elif "DirectoryRecordSequence" in found:
            skipped.append(f"{name}: an index of files (DICOMDIR) without a picture.")
        elif "Image" in getattr(found.get("SOPClassUID"), "name", ""):
            skipped.append(f"{name}: The picture has no pixels; the file may be cut short.")
        else:
            skipped.append(f"{name}: {found.get('Modality') or 'an object'} without a picture.")
    pictures.sort(key=lambda row: (str(row[1].get("SeriesInstanceUID")), _number(row[1].get("InstanceNumber"))))
    return pictures, skipped


def _number(value: object) -> int:
    try:
        return int(value)  # type: ignore[call-overload,no-any-return]  # whatever a file holds
    except (TypeError, ValueError):
        return 0


def _unpack(packed: Sequence[Packed], width: int) -> NDArray[np.bool_]:
    """Masks (frames, h, width), in a file without a name that goes with them: it has holes for empty masks."""
    shape = len(packed), len(packed[0]), width
    with tempfile.TemporaryFile(prefix="fovea-masks-") as file:
        masks = np.memmap(file, np.bool_, "w+", shape=shape)
    for place, one in enumerate(packed):
        if one.any():
            masks[place] = np.unpackbits(one, axis=-1, count=width)
    return masks


def _to_bitmap(picture: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "BMP")
    return out.getvalue()


def _shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    width = max(1, round(picture.shape[1] * STRIP_HEIGHT / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, STRIP_HEIGHT), Image.Resampling.BILINEAR))
