import dataclasses

import numpy as np
import pytest

from datamodules.av_questions import Audio, Picture, Question, prompt_text, segments
from datamodules.rows import DataError

SOUND = Audio(np.zeros((1, 16_000), np.float32), 16_000)
PICTURES = {f"img{number}": Picture(np.full((2, 2, 3), number, np.uint8)) for number in (1, 2, 3, 4)}
QUESTION = Question("1_7", "Instrument Recognition", 1, "Timbre", "Which of [img1] [img2] [img3] [img4] sounds like [audio1]?",
                    ("the third image", "the first image", "the second image", "the fourth image"), "B", {**PICTURES, "audio1": SOUND})


def test_the_prompt_is_the_benchmarks_word_for_word():
    assert prompt_text(QUESTION) == (
        "Which of [img1] [img2] [img3] [img4] sounds like [audio1]?\nA:the third image\nB:the first image\nC:the second image\n"
        "D:the fourth image\nAnswer with the option's letter from the given choices directly.")


def test_media_stand_where_their_tags_stand_also_a_sound_before_the_images_and_one_that_comes_twice():
    question = dataclasses.replace(QUESTION, text="[audio1] fits one of [img4][img1], [img2], [img3]. Again: [audio1]")
    found = segments(question)
    assert [part if isinstance(part, str) else type(part).__name__ for part in found[:-1]] == [
        "Audio", " fits one of ", "Picture", "Picture", ", ", "Picture", ", ", "Picture", ". Again: ", "Audio"]
    assert found[0] is SOUND
    assert found[9] is SOUND
    assert [part.pixels[0, 0, 0] for part in found if isinstance(part, Picture)] == [4, 1, 2, 3]
    assert found[-1].startswith("\nA:the third image")


def test_text_in_brackets_that_is_no_tag_stays_text():
    question = dataclasses.replace(QUESTION, text="[note] [image1] [img] [audio1]", media={"audio1": SOUND})
    assert segments(question)[0] == "[note] [image1] [img] "


@pytest.mark.parametrize(("changed", "message"), [
    ({"text": "[audio1] or [audio2]?", "media": {"audio1": SOUND}}, "question 1_7: shows [audio2] but has no such medium; it has audio1"),
    ({"text": "what?", "media": {}, "options": ("[img1]", "no")}, "question 1_7: shows [img1] but has no such medium; it has none"),
    ({"text": "[img1]?", "media": {**PICTURES}}, "question 1_7: has the medium img2 but its text never shows [img2]"),
])
def test_tags_and_media_that_do_not_agree_are_named(changed, message):
    with pytest.raises(DataError) as error:
        segments(dataclasses.replace(QUESTION, **changed))
    assert str(error.value) == message


def test_a_question_names_its_mix_and_its_letters():
    assert QUESTION.mix == "4 img + 1 audio"
    assert dataclasses.replace(QUESTION, options=("3", "4")).letters == "AB"
