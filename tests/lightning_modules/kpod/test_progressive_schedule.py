"""The table of given steps: its budget, its order, and how much it covers on the step counts of real rationales."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from problem_samples import samples_in

from datamodules.curriculum import Curriculum
from datamodules.steps import split_steps
from lightning_modules.kpod.schedule import Schedule, ScheduleSection, budgets, make_schedule, raised_step, stages_of

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "rationales"


def questions(n=400, seed=0, most=9):
    random = np.random.default_rng(seed)
    counts = random.integers(1, most + 1, n)
    return random.lognormal(0, 0.9, counts.sum()), counts, random.integers(0, 5, n)


def made(section=None, stages=10, n=400, seed=0, most=9):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_schedule(*questions(n, seed, most), section or ScheduleSection(), stages, seed)


def difficulty_left(difficulties, counts, given):
    """Sum d_ij over the steps that are not given, question by question (Eq 9)."""
    rows = np.split(difficulties, np.cumsum(counts)[:-1])
    return sum(row[c:].sum() for row, c in zip(rows, given, strict=True))


def test_the_budget_begins_at_the_first_share_and_ends_at_all_difficulty():
    budget = budgets(200.0, 0.3, 0.5, 10)
    assert budget[0] == 60
    assert budget[-1] == 200
    assert (np.diff(budget) > 0).all()
    assert np.round(budget / 200, 3).tolist() == [0.3, 0.322, 0.363, 0.415, 0.477, 0.547, 0.625, 0.71, 0.801, 0.898, 1.0]


def test_the_budget_solves_the_papers_differential_equation():
    total, start, power, stages = 50.0, 0.2, 1.5, 8
    budget = budgets(total, start, power, stages)
    speed = (total - start * total) * (power + 1) / stages ** (power + 1)  # u
    for t in range(stages + 1):
        steps = (np.arange(20_000) + 0.5) / 20_000 * t
        assert budget[t] == pytest.approx(start * total + (speed * steps**power).mean() * t if t else start * total, rel=1e-6)


@pytest.mark.parametrize("section", [
    ScheduleSection(), ScheduleSection(beta=0), ScheduleSection(step=3), ScheduleSection(start=0, raise_step=False),
    ScheduleSection(start=1), ScheduleSection(power=2, clusters=2),
])
def test_given_steps_never_rise_and_their_difficulty_keeps_to_the_budget(section):
    difficulties, counts, clusters = questions()
    schedule = made(section)
    assert schedule.table.shape == (11, 400)
    assert (schedule.table >= 0).all()
    assert (schedule.table <= counts).all()
    assert (np.diff(schedule.table, axis=0) <= 0).all()
    assert np.diff(schedule.table, axis=0).min() >= -schedule.step
    for t, given in enumerate(schedule.table):
        left = difficulty_left(difficulties, counts, given)
        assert schedule.difficulty[t] == pytest.approx(left, rel=1e-9)
        assert left <= schedule.budget[t] + 1.1e-6 * difficulties.sum()
        moved = np.flatnonzero(given < (schedule.table[t - 1] if t else counts))
        assert schedule.chosen[t].tolist() == np.bincount(clusters[moved], minlength=5).tolist()


def test_nothing_is_given_after_the_last_stage(tmp_path):
    samples, _ = samples_in(tmp_path)
    everyone, counts = np.arange(len(samples)), samples.counts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = make_schedule(np.ones(counts.sum()), counts, everyone % 5, ScheduleSection(raise_step=False), 2)
    curriculum = Curriculum(samples, None, schedule.table)
    for epoch, stage in ((0, 1), (1, 2)):
        assert np.array_equal(curriculum.given(epoch, everyone), schedule.table[stage])
    assert schedule.table[2].any()
    assert not curriculum.given(2, everyone).any()


def test_one_step_rationales_are_all_generated_in_full_at_the_last_stage():
    schedule = made(stages=20, most=1)
    assert not schedule.table[-1].any()
    assert schedule.difficulty[-1] == pytest.approx(schedule.budget[-1])
    assert schedule.unfinished == 0


def test_the_first_budget_is_used_up_by_rounds_that_take_one_step_a_question():
    difficulties, counts, _ = questions()
    schedule = made()
    cheapest_left = min(difficulties[end - 1] for end in (np.cumsum(counts) - counts + schedule.table[0]) if end > 0)
    assert schedule.budget[0] - schedule.difficulty[0] < max(cheapest_left, difficulties.max())
    assert schedule.difficulty[0] > 0.99 * schedule.budget[0]


def test_first_last_makes_each_question_generate_its_last_step():
    difficulties, counts, _ = questions()
    schedule = made(ScheduleSection(first="last"))
    assert np.array_equal(schedule.table[0], counts - 1)
    assert schedule.difficulty[0] == pytest.approx(difficulties[np.cumsum(counts) - 1].sum())


def test_first_last_above_the_first_budget_warns():
    with pytest.warns(UserWarning, match=r"first=greedy keeps to it"):
        make_schedule(*questions(most=2), ScheduleSection(first="last"), 10)


def test_the_step_is_raised_until_most_questions_can_lose_all_steps():
    counts = np.array([12] * 95 + [40] * 5)  # 95 % have 12
    assert [raised_step(counts, ScheduleSection(), stages) for stages in (12, 11, 6, 5)] == [1, 2, 2, 3]
    assert raised_step(counts[1:], ScheduleSection(), 20) == 2  # fewer than 95 % have 12
    assert raised_step(counts, ScheduleSection(raise_step=False), 10) == 1
    assert raised_step(counts, ScheduleSection(step=3), 10) == 3
    assert made(stages=3).step == 3


def test_more_than_a_tenth_unfinished_warns_and_less_does_not():
    with pytest.warns(UserWarning, match=r"still given steps at stage 4, the last"):
        make_schedule(*questions(), ScheduleSection(raise_step=False), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_schedule(*questions(most=3), ScheduleSection(), 30)


def test_the_same_questions_make_the_same_table_and_without_variety_the_seed_decides():
    assert np.array_equal(made().table, made().table)
    assert np.array_equal(made(ScheduleSection(beta=0)).table, made(ScheduleSection(beta=0)).table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (make_schedule(*questions(), ScheduleSection(beta=0), 10, seed).table for seed in (1, 2))
        assert not np.array_equal(one, other)
        one, other = (make_schedule(*questions(), ScheduleSection(), 10, seed).table for seed in (1, 2))
        assert np.array_equal(one, other)


def test_variety_spreads_the_choice_over_clusters():
    random = np.random.default_rng(0)
    clusters, counts = np.repeat([0, 1], 200), np.full(400, 4)
    difficulties = random.lognormal(np.repeat([0.0, 0.5], 800), 0.3)  # the second cluster is harder

    def share(beta):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = make_schedule(difficulties, counts, clusters, ScheduleSection(beta=beta, start=0.05), 10).chosen[1]
        return chosen[1] / chosen.sum()

    assert 0 < share(12.0) < share(0.0)  # by density the easy ones come first, but not only they


def test_a_schedule_is_read_as_it_was_written(tmp_path):
    schedule = made()
    schedule.save(tmp_path)
    again = Schedule.load(tmp_path)
    for name in ("table", "budget", "difficulty", "chosen"):
        assert np.array_equal(getattr(again, name), getattr(schedule, name))
    assert again.step == schedule.step
    assert json.loads(json.dumps(again.facts())) == schedule.facts()


def test_stages_are_half_of_the_epochs_unless_given():
    assert stages_of(ScheduleSection(), 20) == 10
    assert stages_of(ScheduleSection(), 1) == 1
    assert stages_of(ScheduleSection(stages=3), None) == 3
    for unknown in (None, -1):
        with pytest.raises(ValueError, match=r"module\.schedule\.stages: .* or trainer\.max_epochs"):
            stages_of(ScheduleSection(), unknown)
    with pytest.warns(UserWarning, match="30 stages do not fit into 20 epochs"):
        assert stages_of(ScheduleSection(stages=30), 20) == 30


@pytest.mark.parametrize(("key", "value"), [
    ("stages", 0), ("start", 1.1), ("start", -0.1), ("power", -1), ("power", float("nan")), ("beta", -1), ("beta", float("inf")),
    ("clusters", 0), ("clusters", 256), ("step", 0),
])
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"^{key}: must .* not {value}$"):
        ScheduleSection(**{key: value})


def test_two_ways_to_cluster_are_refused_and_clusters_have_no_effect_without_beta():
    with pytest.raises(ValueError, match=r"^glove: must not be given together with sentences"):
        ScheduleSection(glove="a", sentences="b")
    assert set(ScheduleSection(beta=0).without_effect()) == {"clusters", "glove", "sentences"}
    assert ScheduleSection().without_effect() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_difficulties_that_are_no_numbers_are_refused(bad):
    difficulties, counts, clusters = questions()
    difficulties[7] = bad
    with pytest.raises(ValueError, match="difficulty of a step must be a finite number"):
        make_schedule(difficulties, counts, clusters, ScheduleSection(), 10)


def steps_of(name, split):
    if not (DATA / name).is_file():
        pytest.skip(f"../shared/data/rationales/{name} is not there")
    rows = [json.loads(line) for line in (DATA / name).open()]
    texts = [row["rationale"] for row in rows if row.get("rationale") and row["split"] in split]
    return np.array([len(split_steps(text)) for text in texts])


def covered(counts, stages, **options):
    """Return the share of unfinished questions and H(T)/B with log-normal difficulties."""
    random = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = make_schedule(random.lognormal(0, 0.9, counts.sum()), counts, random.integers(0, 5, len(counts)),
                                 ScheduleSection(raise_step=False, **options), stages)
    return schedule.unfinished, schedule.difficulty[-1] / schedule.budget[-1]


def test_coverage_of_the_human_rationales_of_gsm8k_is_what_was_measured_before():
    counts = steps_of("gsm8k.jsonl", {"train"})
    assert len(counts) == 7473
    unfinished, reached = covered(counts, 10)
    assert unfinished == pytest.approx(0.06, abs=0.015)
    assert reached == pytest.approx(0.968, abs=0.01)


def test_coverage_of_long_rationales_is_what_was_measured_before():
    counts = np.random.default_rng(0).choice(steps_of("gsm8k_gpt35_500.jsonl", {"train"}), 7473)
    unfinished, reached = covered(counts, 10)
    assert unfinished == pytest.approx(0.258, abs=0.03)
    assert reached == pytest.approx(0.869, abs=0.015)
    assert covered(counts, 10, step=2)[0] == pytest.approx(0.118, abs=0.02)
    assert covered(counts, 50)[0] == pytest.approx(0.048, abs=0.015)


def test_coverage_of_two_step_rationales_is_nearly_whole():
    counts = steps_of("commonsenseqa.jsonl", {"train", "valid", "validation", "test"})
    assert covered(counts, 10)[0] == pytest.approx(0.0065, abs=0.006)
