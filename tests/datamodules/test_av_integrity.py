import io

import av
import encoded_media as encoded
import numpy as np
import pytest
from test_av_media import shades, tones

from datamodules.av_integrity import facts_of
from datamodules.av_media import Damaged, moments

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
WHOLE = {
    "wav": ("audio", encoded.sound(tones(), 22_050)), "flac": ("audio", encoded.sound(tones(), 22_050, "flac")),
    "ogg": ("audio", encoded.sound(tones(2, 2.0), 22_050, "ogg")), "mp3": ("audio", encoded.sound(tones(2, 2.0), 22_050, "mp3")),
    "m4a": ("audio", encoded.aac(tones(2, 2.0), 22_050)), "m4a in front": ("audio", encoded.aac(tones(2, 2.0), 22_050, front=True)),
    "png": ("img", encoded.image(NOISE)), "jpeg": ("img", encoded.image(NOISE, "jpeg")), "webp": ("img", encoded.image(NOISE, "webp")),
    "mp4": ("video", encoded.film(shades(20), 10)), "mp4 in front": ("video", encoded.film(shades(20), 10, front=True)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_media_pass_with_what_they_are(name):
    kind, content = WHOLE[name]
    found = facts_of(kind, content)
    assert (found.kind, found.size) == (kind, len(content))
    if kind == "audio":
        assert found.channels == (4 if name in ("wav", "flac") else 2)
        assert found.rate == 22_050
        assert found.seconds == pytest.approx(0.5 if name in ("wav", "flac") else 2.0, abs=0.15)
        assert found.tokens == pytest.approx(25 * found.seconds)
    elif kind == "img":
        assert (found.width, found.height, found.tokens) == (64, 48, pytest.approx(64 * 48 / 784))
    else:
        assert (found.width, found.height, found.rate, found.seconds) == (32, 32, 10, 2)
        assert found.tokens == pytest.approx(len(moments(2, 32, 2.0)) * 32 * 32 / 784)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_what_was_cut_off_is_found_whatever_its_format(name, share):
    kind, content = WHOLE[name]
    with pytest.raises(Damaged, match=r"cut off|decoded|has no picture"):
        facts_of(kind, content[:int(share * len(content))])


def test_a_film_that_is_damaged_after_its_beginning_is_found():
    content = bytearray(encoded.film(np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8), 10))
    with av.open(io.BytesIO(content)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    for packet in packets[20:26]:
        content[packet.pos:packet.pos + packet.size] = bytes(packet.size)
    with pytest.raises(Damaged, match="cannot be decoded"):
        facts_of("video", bytes(content))


def test_a_decoder_alone_would_have_read_half_a_wav_and_said_nothing():
    from datamodules.av_media import audio_of

    content = WHOLE["wav"][1]
    assert audio_of(content[:len(content) // 2]).seconds == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("kind", "content", "reason"), [
    ("audio", b"", "is empty"),
    ("img", b"", "is empty"),
    ("audio", encoded.sound(tones()[:, :0], 22_050), "holds no samples"),
    ("audio", WHOLE["wav"][1][:44], "holds no samples"),  # the header promises more
    ("audio", WHOLE["wav"][1][:30], "is cut off before its samples"),
    ("audio", encoded.sound(np.zeros((2, 22_050), np.float32), 22_050), "is silent"),
    ("audio", encoded.sound(tones(1, 0.04), 22_050), r"is too short \(40 ms\)"),
    ("audio", encoded.sound(np.full((1, 4000), np.nan, np.float32), 22_050, subtype="FLOAT"), "has samples that are no numbers"),
    ("audio", b"<html>404</html>" * 9, "cannot be decoded"),
    ("video", WHOLE["wav"][1], "has no picture"),
])
def test_other_damage_has_its_reason(kind, content, reason):
    with pytest.raises(Damaged, match=f"^{reason}"):
        facts_of(kind, content)


def test_a_wav_from_a_pipe_which_knows_no_length_passes():
    content = bytearray(WHOLE["wav"][1])
    place = content.find(b"data") + 4
    content[4:8] = content[place:place + 4] = b"\xff" * 4
    assert facts_of("audio", bytes(content)).channels == 4


def test_bytes_behind_the_samples_do_no_harm():
    assert facts_of("audio", WHOLE["wav"][1] + b"LIST\x04\x00\x00\x00abcd").seconds == pytest.approx(0.5)
    assert facts_of("img", WHOLE["jpeg"][1] + b"\0" * 100).width == 64


def test_a_reason_is_the_same_whenever_it_is_found():
    reasons = []
    for _ in range(2):
        with pytest.raises(Damaged) as caught:
            facts_of("img", b"<html>")
        reasons.append(str(caught.value))
    assert reasons == ["cannot be decoded (cannot identify image file)"] * 2
