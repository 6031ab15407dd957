import numpy as np
import pytest
from scipy.stats import binomtest

from datamodules.av_tasks import ANSWERS, MATCHING, MIX_OF_TASK, MIXES, TASKS
from lightning_modules.av_odyssey.averages import ATTRIBUTES, Score, averages, by_attribute, by_task, guessing, mean_of, share
from lightning_modules.av_odyssey.published import COLUMNS, paper, rebuilt, rows

PRINTED = """
Unified-IO-2 L|23.8|24.1|28.8|15.0|26.8|30.0|30.4|26.0|26.04
Unified-IO-2 XL|24.3|23.2|27.8|22.5|25.3|31.5|34.8|26.3|26.32
Unified-IO-2 XXL|26.3|22.7|26.4|32.5|26.8|24.5|33.8|27.2|26.78
OneLLM|25.0|25.5|21.5|37.5|29.3|25.5|38.4|27.4|26.10
PandaGPT|23.5|23.2|27.6|45.0|23.8|28.0|23.9|26.7|24.74
Video-llama|25.5|22.3|24.4|30.0|26.2|25.0|30.7|26.1|25.71
VideoLLaMA2|24.1|25.5|26.4|30.0|27.2|33.0|34.5|26.8|26.41
AnyGPT|24.6|25.0|26.4|27.5|29.2|29.0|25.7|26.1|25.84
NExT-GPT|23.2|20.9|27.8|30.0|28.8|28.5|23.6|25.5|25.09
VITA|24.1|26.4|27.8|22.5|26.3|31.0|36.8|26.4|26.65
Gemini 1.5 Flash|27.2|25.0|28.8|30.0|25.3|28.5|31.2|27.8|27.49
Gemini 1.5 Flash-8B|25.1|24.5|28.9|27.5|27.5|29.0|30.2|26.8|26.76
Gemini 1.5 Pro|30.8|31.4|31.3|37.5|27.7|20.5|33.0|30.8|30.16
Reka Core|26.7|27.7|26.4|22.5|26.5|24.0|34.3|26.9|27.07
Reka Flash|25.5|24.1|27.2|30.0|27.5|31.5|24.1|26.3|26.30
Reka Edge|23.8|20.5|26.3|22.5|25.5|22.5|36.8|25.0|25.42
GPT-4o visual caption|37.4|28.6|32.3|27.5|25.5|23.0|28.9|32.3|32.67
GPT-4o audio caption|38.6|31.8|33.6|32.5|27.5|25.0|26.1|34.5|33.81
"""  # attributes and "All" as the paper prints them, then the average over its tasks by questions
TABLE = {line.split("|")[0]: [float(word) for word in line.split("|")[1:]] for line in PRINTED.strip().splitlines()}


@pytest.mark.parametrize("model", paper(), ids=lambda model: model.model)
def test_the_papers_averages_are_rebuilt_from_its_tasks(model):
    found, (*attributes, all_printed, micro) = rebuilt(model), TABLE[model.model]
    assert model.printed == all_printed
    assert found["micro"] == pytest.approx(micro, abs=0.0051)
    for name, percent in zip(ATTRIBUTES, attributes, strict=True):
        if name != "Melody":  # printed with 97 questions for a task of 197
            assert found[name] == pytest.approx(percent, abs=0.101), name
    wrong = dict(model.tasks)
    weights = {14: 97, 15: 200, 16: 200, 17: 200, 18: 200}
    assert np.average([wrong[task] for task in weights], weights=list(weights.values())) == pytest.approx(attributes[2], abs=0.101)


def test_all_eighteen_models_of_the_paper_and_later_ones_stand_in_the_published_table():
    assert [model.model for model in paper()] == list(TABLE)
    assert all(len(row) == len(COLUMNS) for row in rows())
    one = dict(zip(COLUMNS, next(row for row in rows() if row[0] == "OneLLM")))
    assert (one["micro"], one["printed"]) == (26.1, 27.4)


def test_tasks_attributes_mixes_and_answers_are_those_of_4555_questions():
    assert len(TASKS) == 26
    assert sum(task.questions for task in TASKS.values()) == sum(MIXES.values()) == sum(ANSWERS.values()) == 4555
    totals = {name: sum(task.questions for task in TASKS.values() if task.attribute == name) for name in ATTRIBUTES}
    assert list(totals.values()) == [2104, 220, 997, 40, 600, 200, 394]
    one = {mix: sum(TASKS[task].questions for task, its in MIX_OF_TASK.items() if its == mix) for mix in set(MIX_OF_TASK.values())}
    assert all(MIXES[mix] == questions for mix, questions in one.items())
    assert sum(MIXES[mix] for mix in MATCHING) == sum(task.questions for number, task in TASKS.items() if number not in MIX_OF_TASK)


def drawn(seed=3):
    rng = np.random.default_rng(seed)
    return [Score(number, task.name, task.attribute, bool(rng.random() < number / 30)) for number, task in TASKS.items()
            for _ in range(task.questions)]


def test_three_averages_equal_numpys_and_bear_their_names():
    scores = drawn()
    right, tasks = np.array([score.right for score in scores]), np.array([score.task_id for score in scores])
    attributes = np.array([score.attribute for score in scores])
    found = averages(scores)
    assert set(found) == {"micro", "macro_26", "macro_7"}
    assert found["micro"].value == pytest.approx(right.mean(), abs=1e-12)
    assert found["macro_26"].value == pytest.approx(np.mean([right[tasks == task].mean() for task in range(1, 27)]), abs=1e-12)
    assert found["macro_7"].value == pytest.approx(np.mean([right[attributes == name].mean() for name in ATTRIBUTES]), abs=1e-12)
    assert [number for number, _ in by_task(scores)] == list(range(1, 27))
    assert list(by_attribute(scores)) == list(ATTRIBUTES)


def test_a_shares_interval_is_wilsons_and_a_means_covers_its_truth_in_95_of_100_draws():
    interval = binomtest(37, 200).proportion_ci(0.95, method="wilson")
    assert (share(37, 200).low, share(37, 200).high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    rng, truth, sizes = np.random.default_rng(5), np.array([0.2, 0.5, 0.7, 0.3]), (40, 100, 300, 200)
    drawn = [mean_of([share(int(rng.binomial(n, p)), n) for p, n in zip(truth, sizes)]) for _ in range(2000)]
    assert 0.935 < np.mean([one.low < truth.mean() < one.high for one in drawn]) < 0.965


def test_guessing_gets_a_quarter_of_the_benchmark_and_always_a_a_little_more():
    answers = [letter for letter, count in ANSWERS.items() for _ in range(count)]
    found = guessing(answers, [4] * len(answers))
    assert found == {"always_a": pytest.approx(0.2562, abs=5e-5), "random": 0.25}
    assert guessing(["A", "B"], [2, 4]) == {"always_a": 0.5, "random": 0.375}


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_a_mean_of_small_tasks_is_never_certain_and_covers_its_truth(truth):
    rng = np.random.default_rng(1)
    drawn = [mean_of([share(int(rng.binomial(5, truth)), 5) for _ in range(26)]) for _ in range(1000)]
    assert np.mean([one.low <= truth <= one.high for one in drawn]) > 0.94
    assert min(one.high - one.low for one in drawn) > 0.02
