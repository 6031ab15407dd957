from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import label

from datamodules.av_plan import digest_of
from datamodules.av_questions import Audio, Picture, Video, segments
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.av_tasks import MIXES, SPATIAL, TASKS

QUESTIONS = SyntheticQuestions(seed=3, each=6)


def counted(medium):
    """Count by other means than the generator's: bright regions, bright frames, or stretches of sound."""
    if isinstance(medium, Picture):
        return label(medium.pixels[..., 0] > 100)[1]
    if isinstance(medium, Video):
        return label(medium.frames.mean(axis=(1, 2, 3)) > 100)[1]
    loudest = np.abs(medium.samples).max(axis=0)
    frames = loudest[: len(loudest) // 160 * 160].reshape(-1, 160).max(axis=1)  # of 10 ms
    return label(frames > 0.05 * frames.max())[1]


def test_all_tasks_and_mixes_of_the_benchmark_come():
    questions = list(QUESTIONS)
    assert Counter(question.task_id for question in questions) == dict.fromkeys(TASKS, 6)
    assert {question.mix for question in questions} == set(MIXES)
    assert len({question.id for question in questions}) == len(questions)


@pytest.mark.parametrize("index", range(0, len(QUESTIONS), 5))
def test_whoever_counts_the_media_finds_the_right_letter(index):
    question = QUESTIONS[index]
    counts = {tag: counted(medium) for tag, medium in question.media.items()}
    assert counts == question.truth["counts"]
    option = question.options["ABCD".index(question.answer)]
    if option.isdigit():
        assert int(option) == sum(counts.values())
    else:
        many = next(kind for kind in ("img", "audio", "video") if f"{kind}4" in counts)
        one = counts[next(tag for tag in counts if not tag.startswith(many))]
        place = ["first", "second", "third", "fourth"].index(option.split()[1]) + 1
        assert [counts[f"{many}{number}"] == one for number in (1, 2, 3, 4)] == [number == place for number in (1, 2, 3, 4)]


def test_all_media_stand_in_the_prompt_and_spatial_tasks_have_four_channels():
    for question in QUESTIONS:
        assert sum(not isinstance(part, str) for part in segments(question)) == len(question.media)
        for medium in question.media.values():
            if isinstance(medium, Audio):
                assert medium.samples.dtype == np.float32
                assert len(medium.samples) == (4 if question.task in SPATIAL else 1)


def test_a_question_depends_on_its_place_alone():
    again = SyntheticQuestions(seed=3, each=2)[30]
    assert (again.text, again.options, again.answer) == (QUESTIONS[30].text, QUESTIONS[30].options, QUESTIONS[30].answer)
    assert {tag: digest_of(medium) for tag, medium in again.media.items()} == {t: digest_of(m) for t, m in QUESTIONS[30].media.items()}
    assert digest_of(SyntheticQuestions(seed=4, each=2)[30].media["audio1"]) != digest_of(again.media["audio1"])


def test_answers_are_spread_over_the_letters():
    letters = Counter(question.answer for question in SyntheticQuestions(seed=1, each=20))
    assert set(letters) == set("ABCD")
    assert all(abs(count - 130) < 40 for count in letters.values())  # four standard deviations
