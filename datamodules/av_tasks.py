"""The tasks of AV-Odyssey Bench, their attributes, sizes and media, as published (arXiv 2412.02611, tables 3 and 5)."""

from typing import NamedTuple


class Task(NamedTuple):
    """A task: the sound attribute that it asks about, and how many questions it has."""

    name: str
    attribute: str
    questions: int


TASKS = {  # by question_type_id
    1: Task("Instrument Recognition", "Timbre", 200), 2: Task("Singer Recognition", "Timbre", 200),
    3: Task("Gunshot Recognition", "Timbre", 200), 4: Task("Bird Recognition", "Timbre", 200),
    5: Task("Animal Recognition", "Timbre", 200), 6: Task("Transportation Recognition", "Timbre", 200),
    7: Task("Material Recognition", "Timbre", 200), 8: Task("Scene Recognition", "Timbre", 200),
    9: Task("Hazard Recognition", "Timbre", 108), 10: Task("Action Recognition", "Timbre", 196),
    11: Task("Eating Sound Recognition", "Timbre", 200), 12: Task("Speech Sentiment Analysis", "Tone", 200),
    13: Task("Meme Understanding", "Tone", 20), 14: Task("Music Sentiment Analysis", "Melody", 197),
    15: Task("Music Genre Classification", "Melody", 200), 16: Task("Dance and Music Matching", "Melody", 200),
    17: Task("Film and Music Matching", "Melody", 200), 18: Task("Music Score Matching", "Melody", 200),
    19: Task("Audio 3D Angle Estimation", "Space", 20), 20: Task("Audio Distance Estimation", "Space", 20),
    21: Task("Audio Time Estimation", "Time", 200), 22: Task("Audio-Visual Synchronization", "Time", 200),
    23: Task("Action Sequencing", "Time", 200), 24: Task("Hallucination Evaluation", "Hallucination", 200),
    25: Task("Action Prediction", "Intricacy", 199), 26: Task("Action Tracing", "Intricacy", 195),
}
MIXES = {  # media of a question -> questions
    "4 img + 1 audio": 2610, "1 img + 4 audio": 891, "1 img + 1 audio": 434, "1 video + 1 audio": 220, "1 video + 4 audio": 400,
}
ANSWERS = {"A": 1167, "B": 1153, "C": 1119, "D": 1116}
MIX_OF_TASK = {  # the one mix of a task; a task that is not named comes in both matching forms, "which image" and "which audio"
    **dict.fromkeys((19, 20, 25, 26), "1 img + 1 audio"), **dict.fromkeys((13, 21), "1 video + 1 audio"),
    **dict.fromkeys((16, 22), "1 video + 4 audio"),
}
MATCHING = ("4 img + 1 audio", "1 img + 4 audio")
SPATIAL = frozenset({"Audio 3D Angle Estimation", "Audio Distance Estimation"})  # their cue lies between the channels
