"""Sounds, images and films from their files' bytes: soundfile first, PyAV second, pillow for images.

Channels, sample rate and level stay as they are: whoever turns them into something else does so knowingly. What is read is all there,
because the decoders often say nothing where a file was cut (`datamodules.av_integrity` looks at that first).
"""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from datamodules.av_questions import Audio, Picture, Video

FRAMES, FRAMES_A_SECOND = 32, 2.0  # of a film, if nothing else is asked for


class Damaged(ValueError):
    """A medium that cannot be used; the message is the reason, in a few words."""


def audio_of(content: bytes) -> Audio:
    """Read a sound: samples (channels, time) float32, full scale 1. Raises Damaged."""
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return _audio_by_pyav(content)
    return Audio(np.ascontiguousarray(samples.T), rate)


def _audio_by_pyav(content: bytes) -> Audio:
    import av

    try:
        with opened(content) as container:
            if not container.streams.audio:
                raise Damaged("has no sound")
            stream = container.streams.audio[0]
            planes = av.AudioResampler(format="fltp")  # numbers of one kind; channels and rate stay
            parts = [plane.to_ndarray() for frame in _and_end(container.decode(stream)) for plane in planes.resample(frame)]
            rate = stream.rate
    except (av.FFmpegError, EOFError) as error:
        raise Damaged(f"cannot be decoded ({words_of(error)})") from None
    if not parts:
        raise Damaged("holds no samples")
    return Audio(np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32), int(rate or 0))


def opened(content: bytes) -> Any:
    """Open a container of any format for reading."""
    import av

    return av.open(io.BytesIO(content))


def _and_end(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield frames, and then None, which makes a resampler give what it holds back."""
    yield from frames
    yield None


def picture_of(content: bytes) -> Picture:
    """Read an image, turned as its camera was held, transparent parts over white. Raises Damaged."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Damaged(f"cannot be decoded ({words_of(error)})") from None
    if image.mode.startswith("I"):  # 16 bits, which pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return Picture(np.array(image.convert("RGB")))


def video_of(content: bytes, frames: int = FRAMES, rate: float = FRAMES_A_SECOND) -> Video:
    """Read `rate` frames a second of a film, or `frames` of them spread over it where that were more; no sound. Raises Damaged."""
    import av

    try:
        with opened(content) as container:
            if not container.streams.video:
                raise Damaged("has no picture")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            wanted = moments(seconds_of(container, stream), frames, rate)
            found = _at(wanted, container.decode(stream))
    except (av.FFmpegError, EOFError) as error:
        raise Damaged(f"cannot be decoded ({words_of(error)})") from None
    if not found:
        raise Damaged("holds no frames")
    step = wanted[1] - wanted[0] if len(wanted) > 1 else 1 / rate
    return Video(np.stack(found), float(1 / step))


def moments(seconds: float, frames: int, rate: float) -> np.ndarray:
    """Choose at what seconds a film is looked at, (n,): from its begin on every 1 / rate, and wider apart where that were over `frames`."""
    count = max(int(np.ceil(seconds * rate - 1e-9)), 1)
    return np.arange(count) / rate if count <= frames else np.arange(frames) * (seconds / frames)


def seconds_of(container: Any, stream: Any) -> float:
    """Return how long a stream says that it lasts, or else its container; 0 where neither does."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6


def _at(wanted: np.ndarray, decoded: Iterator[Any]) -> list[np.ndarray]:
    """Return the frame that is shown at each moment: the last one that begins by then."""
    found: list[np.ndarray] = []
    first, shown = None, None
    for frame in decoded:
        first = frame.time if first is None else first
        while shown is not None and len(found) < len(wanted) and wanted[len(found)] < frame.time - first - 1e-6:
            found.append(shown.to_ndarray(format="rgb24"))
        if len(found) == len(wanted):
            return found
        shown = frame
    if shown is not None:
        found += [shown.to_ndarray(format="rgb24")] * (len(wanted) - len(found))
    return found


def words_of(error: BaseException) -> str:
    """Say in one short line what a decoder complains about."""
    text = re.sub(r" ?<\S+ object at 0x[0-9a-f]+>", "", str(error))  # which is another each time
    return " ".join(text.split())[:120] or type(error).__name__
