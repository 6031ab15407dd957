"""Whether a medium is whole. Decoders do not say: a WAV that was cut gives half its samples, and one of a header alone gives none.

Each format is asked for what it says of its own length: RIFF and FLAC in their headers, MP3 in the Xing header where there is one, Ogg in
the flag of its last page, MP4 in the number of its packets.
"""

import io
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.av_media import FRAMES, FRAMES_A_SECOND, Damaged, audio_of, moments, opened, picture_of, seconds_of, words_of
from datamodules.av_plan import PIXELS_A_TOKEN, tokens_of
from datamodules.av_questions import Audio, Kind

SHORTEST = 0.05  # seconds of a sound that can be heard as something
UNKNOWN = (0, 0xFFFFFFFF)  # what stands for a length in a WAV that was written to a pipe


@dataclass(frozen=True)
class Facts:
    """What is known of a medium without reading it again; what does not apply is 0. `tokens` estimates its cost."""

    kind: Kind
    size: int  # bytes
    tokens: float
    seconds: float = 0.0
    rate: float = 0.0  # samples or frames a second
    channels: int = 0
    width: int = 0
    height: int = 0


def facts_of(kind: Kind, content: bytes) -> Facts:
    """Look a medium through. Raises Damaged with the reason if it is not whole, or says nothing."""
    if not content:
        raise Damaged("is empty")
    if kind == "img":
        picture = picture_of(content)
        return Facts("img", len(content), tokens_of(picture), width=picture.pixels.shape[1], height=picture.pixels.shape[0])
    if kind == "video":
        return _film(content)
    check_length(content)
    audio = audio_of(content)
    check_sound(audio)
    return Facts("audio", len(content), tokens_of(audio), audio.seconds, audio.rate, len(audio.samples))


def check_sound(audio: Audio) -> None:
    """Raise Damaged for a sound that says nothing."""
    if not audio.samples.size:
        raise Damaged("holds no samples")
    if not np.isfinite(audio.samples).all():
        raise Damaged("has samples that are no numbers")
    if audio.seconds < SHORTEST:
        raise Damaged(f"is too short ({1000 * audio.seconds:.0f} ms)")
    if not audio.samples.any():
        raise Damaged("is silent")


def check_length(content: bytes) -> None:
    """Raise Damaged for the file of a sound that is shorter than it says."""
    if content[:4] in (b"RIFF", b"RF64"):
        _check_wav(content)
    elif content[:4] == b"fLaC":
        _check_flac(content)
    elif content[:4] == b"OggS":
        _check_ogg(content)
    elif content[4:8] == b"ftyp":
        _check_packets(content, "audio")
    else:
        _check_mp3(content)


def _check_wav(content: bytes) -> None:
    place = 12
    while place + 8 <= len(content):
        name, size = content[place:place + 4], struct.unpack_from("<I", content, place + 4)[0]
        if name == b"data":
            there = len(content) - place - 8
            if not there:
                raise Damaged("holds no samples")
            if size not in UNKNOWN and size > there:
                raise Damaged(f"is cut off ({there} of {size} bytes)")
            return
        place += 8 + size + size % 2
    raise Damaged("is cut off before its samples")


def _check_flac(content: bytes) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            there = len(file.read(dtype="float32", always_2d=True))
    except soundfile.LibsndfileError as error:
        raise Damaged(f"cannot be decoded ({error.error_string})") from None
    said = int.from_bytes(content[21:26], "big") & (2**36 - 1)  # of STREAMINFO; 0: unknown
    if there < said:
        raise Damaged(f"is cut off ({there} of {said} samples)")


def _check_ogg(content: bytes) -> None:
    page = content.rfind(b"OggS")
    segments = content[page + 27: page + 27 + content[page + 26]] if page + 26 < len(content) else b""
    whole = bool(segments) and page + 27 + len(segments) + sum(segments) <= len(content)
    if not whole or not content[page + 5] & 4:
        raise Damaged("is cut off before its last page")


def _check_mp3(content: bytes) -> None:
    """Compare with the bytes that the header of Xing, or of LAME's Info, counts; a file without one says nothing."""
    start = 10 + _id3_size(content) if content[:3] == b"ID3" else 0
    first = content[start:start + 200]
    place = max(first.find(b"Xing"), first.find(b"Info"))
    if place < 0 or place + 8 > len(first):
        return
    flags = struct.unpack_from(">I", first, place + 4)[0]
    if flags & 2:
        said = struct.unpack_from(">I", first, place + 8 + 4 * (flags & 1))[0]
        if said > len(content) - start:
            raise Damaged(f"is cut off ({len(content) - start} of {said} bytes)")


def _id3_size(content: bytes) -> int:
    """Read a size of four bytes of seven bits each."""
    return sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0)))


def _film(content: bytes) -> Facts:
    """Look a film through to its last frame: one that is damaged in between is found before anything is asked of it."""
    import av

    _check_packets(content, "video")
    try:
        with opened(content) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frame = None
            for frame in container.decode(stream):  # noqa: B007
                pass
            seconds, rate = seconds_of(container, stream), float(stream.average_rate or 0)
    except (av.FFmpegError, EOFError) as error:
        raise Damaged(f"cannot be decoded ({words_of(error)})") from None
    if frame is None:
        raise Damaged("holds no frames")
    tokens = len(moments(seconds, FRAMES, FRAMES_A_SECOND)) * frame.width * frame.height / PIXELS_A_TOKEN
    return Facts("video", len(content), tokens, seconds, rate, width=frame.width, height=frame.height)


def _check_packets(content: bytes, kind: Literal["audio", "video"]) -> None:
    """Read all packets; an MP4 says how many there are."""
    import av

    try:
        with opened(content) as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise Damaged("has no picture" if kind == "video" else "has no sound")
            said, there, last = streams[0].frames, 0, 0
            for packet in container.demux(streams[0]):
                there += packet.size > 0
                last = max(last, (packet.pos or 0) + packet.size)
    except (av.FFmpegError, EOFError) as error:
        raise Damaged(f"cannot be decoded ({words_of(error)})") from None
    if there < said:
        raise Damaged(f"is cut off ({there} of {said} packets)")
    if last > len(content):
        raise Damaged("is cut off in its last packet")
