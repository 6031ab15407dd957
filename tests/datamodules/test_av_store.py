import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import asdict

import encoded_media as encoded
import numpy as np
import pytest
import stand_in_odyssey as published
from test_av_synthetic import counted

from datamodules import av_store
from datamodules.av_exam import Exam
from datamodules.av_parquet import CELLS
from datamodules.av_questions import Audio, kind_of, prompt_text
from datamodules.av_store import Entry, Kept, differences, stored_questions
from datamodules.av_synthetic import SyntheticQuestions
from datamodules.av_tasks import MATCHING, MIX_OF_TASK, MIXES, SPATIAL, TASKS
from datamodules.rows import DataError

QUESTIONS = list(SyntheticQuestions(seed=2, each=2))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return published.write_hub(tmp_path_factory.mktemp("hub"), QUESTIONS)


def media_files(cache):
    return [path for path in (cache / "av_odyssey" / "media").rglob("*") if path.is_file()]


@pytest.mark.parametrize("write", [published.write_hub, published.write_index])
def test_whoever_counts_what_comes_out_finds_what_went_in(write, tmp_path):
    found = stored_questions(str(write(tmp_path / "data", QUESTIONS)), tmp_path / "cache", 32, 8.0)
    assert not found.reasons
    for stored, made in zip(found, QUESTIONS, strict=True):
        assert (stored.id, stored.task_id, stored.attribute, stored.mix) == (made.id, made.task_id, made.attribute, made.mix)
        assert (prompt_text(stored), stored.answer) == (prompt_text(made), made.answer)
        assert {tag: counted(medium) for tag, medium in stored.media.items()} == made.truth["counts"]
        for medium in stored.media.values():
            if isinstance(medium, Audio):
                assert (medium.rate, len(medium.samples)) == (16_000, 4 if stored.task in SPATIAL else 1)


def test_media_are_kept_once_by_their_content_and_those_that_are_files_stay_where_they_are(hub, tmp_path):
    stored_questions(str(hub), tmp_path / "one")
    files = media_files(tmp_path / "one")
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in files)
    contents = {published.encode(medium) for question in QUESTIONS for medium in question.media.values()}
    assert {path.read_bytes() for path in files} == contents
    assert len(files) == len(contents) < sum(len(question.media) for question in QUESTIONS)
    stored_questions(str(published.write_index(tmp_path / "index", QUESTIONS[:3])), tmp_path / "two")
    assert not media_files(tmp_path / "two")


def test_an_examination_is_planned_without_reading_a_medium(hub, tmp_path, monkeypatch):
    found = stored_questions(str(hub), tmp_path)
    monkeypatch.setattr(av_store.Places, "medium", lambda *_: pytest.fail("was read"))
    items = Exam(found, "files").items
    assert len({item.key for item in items}) == len(QUESTIONS)
    question = QUESTIONS[1]
    pixels = sum(medium.pixels.size / 3 for medium in question.media.values() if not isinstance(medium, Audio))
    seconds = sum(medium.seconds for medium in question.media.values() if isinstance(medium, Audio))
    assert items[1].cost == pytest.approx(len(prompt_text(question)) / 4 + pixels / 784 + 25 * seconds)


def test_the_index_comes_back_as_it_was_written():
    entry = Entry("1_1", "é", 1, "Timbre", "[img1]", ("a", "b"), "A", {"img1": Kept("x", "d", None, True)}, "img1: is not there")
    assert Entry.read(entry.line()) == entry
    whole = Entry("1_1", "t", 1, "Timbre", "[img1]", ("a", "b"), "A",
                  {"img1": Kept("x", "d", av_store.facts_of("img", published.encode(QUESTIONS[0].media["img1"])))})
    assert Entry.read(whole.line()) == whole


WAV = encoded.sound(np.ones((1, 16_000), np.float32) / 2, 16_000)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
FEW = [QUESTIONS[26], QUESTIONS[1], QUESTIONS[12]]  # 4 images and an audio, an image and 4 audios, a film and an audio
DAMAGE = {
    ("audio1", 0): (WAV[:9000], "audio1: is cut off (8956 of 32000 bytes)"),
    ("audio1", 1): (WAV[:44], "audio1: holds no samples"),
    ("audio2", 1): (encoded.sound(np.zeros((1, 16_000), np.float32), 16_000), "audio2: is silent"),
    ("audio3", 1): (encoded.sound(np.ones((1, 500), np.float32) / 2, 16_000), "audio3: is too short (31 ms)"),
    ("audio4", 1): (b"", "audio4: is empty"),
    ("img3", 0): (encoded.image(NOISE, "jpeg")[:2000], "img3: cannot be decoded (image file is truncated"),
    ("img1", 0): (b"<html>", "img1: cannot be decoded (cannot identify image file"),
    ("video1", 2): (encoded.film(QUESTIONS[12].media["video1"].frames, 8)[:500], "video1: has no picture"),
    ("img2", 0): (None, "img2: is not there"),
    ("img1", 2): (encoded.image(NOISE), "img1: is never shown by the text"),
}


@pytest.mark.parametrize(("tag", "index"), DAMAGE)
def test_each_kind_of_damage_puts_its_question_aside_with_the_reason(tag, index, tmp_path):
    content, reason = DAMAGE[tag, index]
    rows = [published.cells(question) for question in FEW]
    rows[index][CELLS[tag]] = content
    published.write(tmp_path / "part.parquet", rows)
    found = stored_questions(str(tmp_path), tmp_path / "cache")
    assert list(found.reasons) == [index]
    assert found.reasons[index].startswith(reason)
    exam = Exam(found, "files", found.reasons)
    assert [question.id for question, _ in exam.unusable.values()] == [FEW[index].id]
    asked = [question.id for batch in exam.loader([], 0, 1, 4) for question in batch.questions]
    assert sorted(asked) == sorted({question.id for question in FEW} - {FEW[index].id})


@pytest.mark.parametrize("path", ["audio/none.wav", "../secret.wav", "/etc/hostname", ""])
def test_a_file_that_is_missing_or_outside_the_folder_is_not_there(path, tmp_path):
    (tmp_path / "secret.wav").write_bytes(WAV)
    row = published.cells(QUESTIONS[0]) | {"audio_1": path}
    (tmp_path / "data").mkdir()
    published.write(tmp_path / "data" / "part.parquet", [row])
    assert stored_questions(str(tmp_path / "data"), tmp_path / "cache").reasons == {0: "audio1: is not there"}


def test_a_file_that_changed_after_it_was_looked_through_is_not_taken_for_itself(tmp_path):
    found = stored_questions(str(published.write_index(tmp_path / "data", QUESTIONS[:1])), tmp_path / "cache")
    file = tmp_path / "data" / found.entries[0].media["audio1"].file
    file.write_bytes(WAV)
    with pytest.raises(OSError, match="is not what it was"):
        found[0].media["audio1"]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        found[0].media["audio1"]
    again = stored_questions(str(tmp_path / "data"), tmp_path / "cache")
    assert again.reasons == {0: "audio1: is not there"}


def slowly(counts):
    """Look media through as ever, 10 ms each, and leave a byte in a file for each."""
    look = av_store.facts_of

    def facts_of(kind, content):
        with counts.open("ab") as file:
            file.write(b".")
        time.sleep(0.01)
        return look(kind, content)

    av_store.facts_of = facts_of


def build(hub, cache, counts):
    slowly(counts)
    stored_questions(str(hub), cache)


def test_a_build_that_was_killed_leaves_whole_files_and_is_begun_again(hub, tmp_path):
    child = FORK.Process(target=build, args=(hub, tmp_path / "cache", tmp_path / "counts"))
    child.start()
    end = time.monotonic() + 60
    while len(media_files(tmp_path / "cache")) < 5:
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    sets = tmp_path / "cache" / "av_odyssey" / "sets"
    assert not [path for path in sets.iterdir() if path.is_dir() and ".tmp-" not in path.name]
    before = {path: path.stat().st_mtime_ns for path in media_files(tmp_path / "cache")}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in before)
    found = stored_questions(str(hub), tmp_path / "cache")
    assert len(found) == len(QUESTIONS)
    assert [path.name for path in sets.iterdir() if path.is_dir() and ".tmp-" in path.name] == []
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was there is not written again


def test_of_processes_that_start_together_one_looks_and_the_others_wait(hub, tmp_path):
    children = [FORK.Process(target=build, args=(hub, tmp_path / "cache", tmp_path / "counts")) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    contents = {(kind_of(tag), published.encode(medium)) for question in QUESTIONS for tag, medium in question.media.items()}
    assert (tmp_path / "counts").stat().st_size == len(contents)


def test_the_same_folder_is_looked_through_again_only_when_a_file_of_it_changed(tmp_path):
    folder = published.write_hub(tmp_path, QUESTIONS[:4], files=2)
    store = tmp_path / "cache"  # below the data
    assert len(stored_questions(str(folder), store)) == 4
    stored_questions(str(folder), store)
    sets = store / "av_odyssey" / "sets"
    assert len([path for path in sets.iterdir() if path.is_dir()]) == 1
    (folder / "av_odyssey_part2.parquet").unlink()
    assert len(stored_questions(str(folder), store)) == 2


def test_a_question_that_comes_twice_is_named_with_both_places(tmp_path):
    rows = [published.cells(question) for question in QUESTIONS[:3]]
    published.write(tmp_path / "a.parquet", rows)
    published.write(tmp_path / "b.parquet", rows[2:])
    with pytest.raises(DataError, match=r"^b.parquet, row 1: question_id: 3_1 stands in a.parquet, row 3 already"):
        stored_questions(str(tmp_path), tmp_path / "cache")


def test_a_name_of_two_tasks_is_refused_because_answers_go_by_names(tmp_path):
    rows = [published.cells(QUESTIONS[0]), published.cells(QUESTIONS[3]) | {"question_id": QUESTIONS[0].id}]
    published.write(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=r"^a.parquet, row 2: question_id: 1_1 stands in a.parquet, row 1 already; each set needs a folder"):
        stored_questions(str(tmp_path), tmp_path / "cache")


SPECIFIED = {  # tables 5 and 3 of the paper: questions by task number, and by mix
    **dict.fromkeys(range(1, 27), 200), 9: 108, 10: 196, 13: 20, 14: 197, 19: 20, 20: 20, 25: 199, 26: 195}


def test_the_published_counts_are_the_papers():
    assert {number: task.questions for number, task in TASKS.items()} == SPECIFIED
    assert sum(SPECIFIED.values()) == sum(MIXES.values()) == 4555
    attributes = {attribute: sum(t.questions for t in TASKS.values() if t.attribute == attribute) for attribute in
                  ("Timbre", "Tone", "Melody", "Space", "Time", "Hallucination", "Intricacy")}
    assert list(attributes.values()) == [2104, 220, 997, 40, 600, 200, 394]
    alone = {mix: sum(SPECIFIED[number] for number, own in MIX_OF_TASK.items() if own == mix) for mix in MIXES if mix not in MATCHING}
    assert alone == {"1 img + 1 audio": 434, "1 video + 1 audio": 220, "1 video + 4 audio": 400}
    assert sum(SPECIFIED[number] for number in SPECIFIED if number not in MIX_OF_TASK) == 2610 + 891


def benchmark():
    """An entry for each question of the whole benchmark, in its mix."""
    tags = {mix: [f"{part.split()[1]}{n}" for part in mix.split(" + ") for n in range(1, int(part.split()[0]) + 1)] for mix in MIXES}
    audios, golds = 891, iter("A" * 1167 + "B" * 1153 + "C" * 1119 + "D" * 1116)  # section 3 of the paper
    for number, count in SPECIFIED.items():
        for place in range(count):
            mix = MIX_OF_TASK.get(number) or MATCHING[audios > 0]
            audios -= mix == MATCHING[1]
            media = {tag: Kept("", "", None) for tag in tags[mix]}
            yield Entry(f"{number}_{place}", TASKS[number].name, number, "", "", (), next(golds), media)


def test_only_what_differs_from_the_published_set_is_told():
    whole = list(benchmark())
    assert len(whole) == 4555
    assert differences(whole) == ""
    assert differences([]) == ""
    assert differences(whole[1:]) == ("not the published 4555 questions but 4554: task 1 has 199 questions of 200; "
                                      "1166 answers are A, of 1167; 890 are 1 img + 4 audio, of 891")
    other = Entry(**{**asdict(whole[0]), "media": {"audio1": Kept("", "", None)}})
    assert differences([other, *whole[1:]]).endswith("890 are 1 img + 4 audio, of 891; 1 are 1 audio, of 0")
