import io
import wave

import encoded_media as encoded
import numpy as np
import pytest
from PIL import Image

from datamodules.av_media import Damaged, audio_of, moments, picture_of, video_of


def tones(channels=4, seconds=0.5, rate=22_050):
    """A tone of its own pitch and level in each channel."""
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([0.5 / (n + 1) * np.sin(2 * np.pi * 300 * (n + 1) * t) for n in range(channels)]).astype(np.float32)


def test_a_wav_is_what_the_standard_library_reads_channels_and_level_kept():
    content = encoded.sound(tones(), 22_050, subtype="PCM_16")
    with wave.open(io.BytesIO(content)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        rate = file.getframerate()
    found = audio_of(content)
    assert found.rate == rate == 22_050
    assert found.samples.shape == (4, 11_025)
    assert np.array_equal(found.samples, raw.T.astype(np.float32) / 2**15)


@pytest.mark.parametrize(("form", "error"), [("flac", 1e-4), ("ogg", 0.06), ("mp3", 0.06)])
def test_other_formats_of_soundfile_keep_channels_rate_and_level(form, error):
    samples = tones(2)
    found = audio_of(encoded.sound(samples, 22_050, form))
    assert (found.rate, len(found.samples)) == (22_050, 2)
    levels = [np.sqrt(np.mean(x[:, 2000:9000] ** 2, axis=1)) for x in (found.samples, samples)]
    assert np.allclose(*levels, rtol=error)


def test_what_soundfile_cannot_read_is_read_by_pyav_at_its_rate_and_level():
    samples = tones(2, 1.0, 32_000)
    found = audio_of(encoded.aac(samples, 32_000))
    assert (found.rate, len(found.samples), found.samples.dtype) == (32_000, 2, np.float32)
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    for place, hertz in enumerate((300, 600)):
        spectrum = np.abs(np.fft.rfft(found.samples[place, 4000:28_000]))
        assert np.argmax(spectrum) * 32_000 / 24_000 == pytest.approx(hertz, abs=2)
        assert np.sqrt(np.mean(found.samples[place, 4000:28_000] ** 2)) == pytest.approx(0.5 / (place + 1) / np.sqrt(2), rel=0.05)


def test_a_quiet_sound_stays_quiet():
    loud, quiet = tones(1), tones(1) / 1000
    ratio = np.abs(audio_of(encoded.sound(quiet, 22_050, subtype="FLOAT")).samples).max() / np.abs(loud).max()
    assert ratio == pytest.approx(1e-3, rel=1e-5)


def test_an_image_keeps_its_pixels_and_transparent_ones_are_over_white():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(picture_of(encoded.image(pixels)).pixels, pixels)
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[:, 3:] = 255
    seen = picture_of(encoded.image(np.concatenate([pixels, alpha], axis=2))).pixels
    assert (seen[:, :3] == 255).all()
    assert np.array_equal(seen[:, 3:], pixels[:, 3:])


def test_grey_palettes_and_16_bits_become_three_channels_of_8():
    grey = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13)
    assert np.array_equal(picture_of(encoded.image(grey)).pixels, np.repeat(grey[..., None], 3, axis=2))
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(picture_of(encoded.image(deep)).pixels[..., 1], grey)
    target = io.BytesIO()
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).convert("P", palette=Image.Palette.ADAPTIVE).save(target, "GIF")
    assert np.abs(picture_of(target.getvalue()).pixels[..., 0].astype(int) - grey).max() <= 3


def test_a_photograph_stands_as_its_camera_was_held():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255  # the upper edge; orientation 6 says that it is the right one
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = picture_of(encoded.image(pixels, exif=exif.tobytes())).pixels
    assert seen.shape == (6, 4, 3)
    assert (seen[:, -1] == 255).all()
    assert not seen[:, :-1].any()


def shades(count, side=32):
    """Frames of one grey each, which compression leaves as they are."""
    return np.broadcast_to(np.linspace(20, 230, count).astype(np.uint8)[:, None, None, None], (count, side, side, 3)).copy()


@pytest.mark.parametrize(("count", "fps", "frames", "rate", "expected"), [
    (30, 10, 32, 2.0, [0, 5, 10, 15, 20, 25]),  # two a second of three seconds
    (30, 10, 3, 2.0, [0, 10, 20]),  # spread where that were too many
    (4, 10, 32, 2.0, [0]),
    (10, 10, 32, 10.0, range(10)),
])
def test_a_film_is_looked_at_so_many_times_a_second(count, fps, frames, rate, expected):
    grey = shades(count)
    found = video_of(encoded.film(grey, fps), frames, rate)
    assert found.frames.dtype == np.uint8
    assert [int(np.abs(grey[:, 0, 0, 0].astype(int) - frame.mean()).argmin()) for frame in found.frames] == [*expected]
    assert found.rate == pytest.approx(fps / (expected[1] - expected[0]) if len(expected) > 1 else rate)


def test_moments_never_come_more_often_than_asked_nor_in_greater_number():
    for seconds in (0.1, 1.0, 15.6, 100.0):
        found = moments(seconds, 32, 2.0)
        assert found[0] == 0
        assert len(found) == min(32, max(1, int(np.ceil(2 * seconds))))
        assert (np.diff(found) >= 0.5 - 1e-9).all()
        assert found[-1] < max(seconds, 1e-9)


@pytest.mark.parametrize(("read", "content", "reason"), [
    (audio_of, b"no sound at all" * 20, "cannot be decoded"),
    (audio_of, encoded.film(shades(3), 10), "has no sound"),
    (picture_of, b"no image at all" * 20, "cannot be decoded"),
    (picture_of, encoded.image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "jpeg")[:900], "cannot be decoded"),
    (video_of, encoded.sound(tones(), 22_050), "has no picture"),
    (video_of, b"no film at all" * 20, "cannot be decoded"),
])
def test_what_cannot_be_read_says_why(read, content, reason):
    with pytest.raises(Damaged, match=reason):
        read(content)
