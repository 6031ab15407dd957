"""Media as files of the kinds that AV-Odyssey has, encoded in memory."""

import io
import tempfile
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image


def sound(samples, rate, form="wav", subtype=None):
    """Samples (channels, time) as a file of soundfile's formats."""
    target = io.BytesIO()
    soundfile.write(target, samples.T, rate, format=form.upper(), subtype=subtype)
    return target.getvalue()


@contextmanager
def mp4(front):
    """An open .mp4, and a list that has its bytes once it is closed; its muxer needs a file to bring the table to the front."""
    target = []
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", options={"movflags": "faststart"} if front else {}) as container:
            yield container, target
        target.append(Path(file.name).read_bytes())


def aac(samples, rate, front=False):
    """Samples (channels, time) as an .m4a, which soundfile cannot read; `front`: its table of packets comes first."""
    with mp4(front) as (container, target):
        stream = container.add_stream("aac", rate=rate, layout="stereo" if len(samples) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout=stream.layout.name)
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return target[0]


def film(frames, rate, codec="mpeg4", front=False):
    """Frames (frames, height, width, 3) uint8 as an .mp4."""
    with mp4(front) as (container, target):
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return target[0]


def image(pixels, form="png", **options):
    """Pixels as a file of pillow's formats."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format=form.upper(), **options)
    return target.getvalue()
