"""The published files in small: questions made on the spot, written in the three layouts that AV-Odyssey comes in."""

import encoded_media as encoded
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.av_plan import digest_of
from datamodules.av_questions import Audio, Picture

NAMES = {"img": "image", "video": "video", "audio": "audio"}
MEDIA = [f"{name}_{number}" for name, count in (("image", 4), ("video", 1), ("audio", 4)) for number in range(1, count + 1)]
ENDINGS = {"img": "png", "video": "mp4", "audio": "wav"}


ENCODED = {}


def encode(medium):
    """A medium as a file; the same one each time."""
    digest = digest_of(medium)
    if digest not in ENCODED:
        ENCODED[digest] = encode_anew(medium)
    return ENCODED[digest]


def encode_anew(medium):
    if isinstance(medium, Audio):
        return encoded.sound(medium.samples, medium.rate, subtype="PCM_24")
    if isinstance(medium, Picture):
        return encoded.image(medium.pixels)
    return encoded.film(medium.frames, int(medium.rate))


def kind(tag):
    return tag.rstrip("0123456789")


def cells(question):
    """A row as in AV_Odyssey_Bench: task numbers as text, media as bytes."""
    row = {"question_id": question.id, "question_type_id": str(question.task_id), "subfield": question.attribute,
           "data_type": "video" if "video1" in question.media else "image", "question": question.text,
           "options": list(question.options), "answer": question.answer}
    media = {f"{NAMES[kind(tag)]}_{tag[len(kind(tag)):]}": encode(medium) for tag, medium in question.media.items()}
    return row | dict.fromkeys(MEDIA) | media


def write(path, rows, group=100):
    """Write rows as one parquet file, media columns as bytes unless they hold something else."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    types = {name: pa.binary() for name in MEDIA if all(isinstance(value, bytes | None) for value in columns.get(name, []))}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=group)


def write_hub(folder, questions, files=6):
    """Write AV_Odyssey_Bench: six files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [cells(question) for question in questions]
    size = -(-len(rows) // files)
    for number in range(files):
        if part := rows[number * size:(number + 1) * size]:
            write(folder / f"av_odyssey_part{number + 1}.parquet", part, group=3)
    return folder


def write_index(folder, questions):
    """Write AV_Odyssey_Bench_LMMs_Eval: an index, and media as files; the options have their letters."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for question in questions:
        paths = {name: [] for name in NAMES}
        for number, (tag, medium) in enumerate(question.media.items(), start=1):
            path = f"{NAMES[kind(tag)]}/{question.id}_{number}.{ENDINGS[kind(tag)]}"
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(encode(medium))
            paths[kind(tag)].append(path)
        row = {name: value for name, value in cells(question).items() if name not in MEDIA}
        row["options"] = [f"{letter}. {option}" for letter, option in zip("ABCD", question.options)]
        rows.append(row | {f"{NAMES[name]}_path": found for name, found in paths.items()})
    write(folder / "av_odyssey.parquet", rows)
    return folder


def write_deaftest(folder, questions):
    """Write Deaftest_dataset: one file, two options, task numbers of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"count": 30, "loudness": 31, "pitch": 32, "duration": 33}
    rows = [cells(question) | {"question_type_id": str(numbers[question.task]), "data_type": "audio"} for question in questions]
    write(folder / "deaftest.parquet", rows)
    return folder
