"""Published figures, to stand beside ours: per task as printed, and the averages that really follow from them.

The paper's "All Avg." does not follow from its own tables (arXiv 2412.02611, tables 4, 6 and 7): rebuilt from the tasks it differs by up
to two points, and its Melody column weighs task 14 with 97 questions instead of 197. Both are shown.
"""

import csv
from dataclasses import dataclass
from importlib import resources

from datamodules.av_tasks import TASKS
from lightning_modules.av_odyssey.averages import averages, by_attribute, scores_of_shares

COLUMNS = ("model", "protocol", "micro", "macro_26", "macro_7", "printed", "Timbre", "Tone", "Melody", "Space", "Time", "Hallucination",
           "Intricacy")
LATER = (  # by others, with prompts, media order and rules of their own: (model, what the figure is, percent)
    ("OpenOmni 7B", "macro_7", 32.8), ("OpenOmni 7B", "micro", 26.4), ("NExT-OMNI", "printed", 36.4), ("Ola-7B", "printed", 25.6),
    ("Ola-7B + GRPO", "printed", 27.0), ("Ola-7B + AVATAR", "printed", 28.8), ("Qwen2.5-Omni-7B (AVATAR)", "printed", 29.8),
    ("Qwen2.5-Omni-7B + GRPO (AVATAR)", "printed", 31.3), ("Qwen2.5-Omni-7B + AVATAR", "printed", 32.1),
    ("Qwen2.5-Omni-7B (CoM)", "printed", 24.4), ("Qwen2.5-Omni-7B + CoM, best path", "printed", 31.6),
    ("Qwen2.5-Omni-3B (JevTrainer)", "printed", 31.99), ("Qwen2.5-Omni-3B + JevTrainer", "printed", 36.60),
    ("AV-Reasoner-Thinking", "printed", 34.29), ("AV-Reasoner, non-thinking", "printed", 36.4),
)
DEAFTEST = {  # model -> percent of 100 questions on counting, loudness, pitch and duration; guessing gets 50
    "Gemini 1.5 Flash": (55, 62, 54, 89), "Gemini 1.5 Flash-8B": (49, 55, 51, 51), "Gemini 1.5 Pro": (81, 60, 52, 84),
    "Reka Core": (54, 43, 42, 40), "Reka Flash": (48, 58, 51, 44), "Reka Edge": (47, 56, 50, 44),
    "GPT-4o audio-preview": (50, 58, 58, 57),
}


@dataclass(frozen=True)
class Published:
    """A model of the paper: percent right of each task by number, and the printed average over all."""

    model: str
    tasks: dict[int, float]
    printed: float


def paper() -> list[Published]:
    """Read the paper's models in the order of its table."""
    found: dict[str, Published] = {}
    text = resources.files("lightning_modules.av_odyssey").joinpath("published.csv").read_text()
    for row in csv.DictReader(text.splitlines()):
        model = found.setdefault(row["model"], Published(row["model"], {}, float(row["printed_all_average"])))
        model.tasks[int(row["task_id"])] = float(row["accuracy_percent"])
    return list(found.values())


def rebuilt(model: Published) -> dict[str, float]:
    """Compute percent right over attributes and as micro, macro_26 and macro_7 from a model's tasks."""
    table = {(number, TASKS[number].name): (TASKS[number].questions, percent) for number, percent in model.tasks.items()}
    scores = scores_of_shares(table, {number: task.attribute for number, task in TASKS.items()})
    return {name: 100 * part.value for name, part in {**averages(scores), **by_attribute(scores)}.items()}


def rows() -> list[tuple[str | float, ...]]:
    """Return the published table, a row of COLUMNS a model; what is not known is empty."""
    found: list[tuple[str | float, ...]] = []
    for model in paper():
        values = rebuilt(model)
        found.append((model.model, "paper", *(round(values[name], 2) if name != "printed" else model.printed for name in COLUMNS[2:])))
    for name, kind, percent in LATER:
        found.append((name, "its own", *(percent if column == kind else "" for column in COLUMNS[2:])))
    return found
