"""Sweep files: W&B takes each of ours, and what is drawn here is what they say."""

import itertools
import math

import pytest
import yaml
from scipy.stats import kstest

from pipelines.catalog import choices_of, path_of
from pipelines.errors import ConfigError
from pipelines.search import checked, open_study, read_sweep, suggest
from pipelines.sweep import check

COMMAND = ["${env}", "fivefold", "train", "experiment=fira_debug", "${args_no_hyphens}"]


def sweep(method="random", parameters=None, **more):
    content = {"method": method, "metric": {"name": "val/loss", "goal": "minimize"}, "command": COMMAND,
               "parameters": parameters or {"optim.lr": {"min": 0.1, "max": 0.2}}, **more}
    return checked(content, "own", "own.yaml")


@pytest.mark.parametrize("name", choices_of("sweep"))
def test_each_file_is_valid_under_wandbs_own_schema_and_all_that_it_may_draw_composes(name):
    own = pytest.importorskip("sweeps.config.cfg", reason="W&B's schema is in the package sweeps, which `make test` installs")
    content = yaml.safe_load(path_of("sweep", name).read_text())
    assert own.schema_violations_from_proposed_config(content) == []
    check(read_sweep(name), [])


def test_a_grid_takes_every_combination_once_in_the_order_of_the_file(tmp_path):
    grid = sweep("grid", {"optim.rank": {"values": [2, 4]}, "optim.lr": {"values": [0.1, 0.2, 0.3]}, "run.seed": {"value": 7}})
    study = open_study(grid, tmp_path)
    drawn = [suggest(study, grid, 1).params for _ in grid.grid]
    assert drawn == [{"optim.rank": rank, "optim.lr": lr} for rank, lr in itertools.product((2, 4), (0.1, 0.2, 0.3))]
    assert grid.line(drawn[0]) == ["experiment=fira_debug", "run.seed=7", "optim.rank=2", "optim.lr=0.1"]


@pytest.mark.parametrize(("spec", "cdf"), [
    ({"min": 0.1, "max": 0.3}, lambda x: (x - 0.1) / 0.2),
    ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, lambda x: math.log(x / 1e-4) / math.log(1e4)),
])
def test_random_draws_follow_their_distribution(spec, cdf, tmp_path):
    random = sweep(parameters={"optim.lr": spec})
    study = open_study(random, tmp_path)
    drawn = [suggest(study, random, 1).params["optim.lr"] for _ in range(60)]
    assert kstest([cdf(x) for x in drawn], "uniform").pvalue > 0.01
    assert len(set(drawn)) == 60


def test_whole_numbers_and_steps_stay_what_they_are(tmp_path):
    whole = sweep(parameters={"a": {"min": 3, "max": 5}, "b": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}})
    study = open_study(whole, tmp_path)
    drawn = [suggest(study, whole, 1).params for _ in range(40)]
    assert {found["a"] for found in drawn} == {3, 4, 5}
    assert {found["b"] for found in drawn} == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_that_was_interrupted_draws_what_one_without_interruption_draws(method, tmp_path):
    def search(folder, pauses):
        folder.mkdir()
        own, drawn = sweep(method), []
        study = open_study(own, folder)
        for _ in range(14):
            study = open_study(own, folder) if pauses else study
            trial = suggest(study, own, 3)
            drawn.append(trial.params["optim.lr"])
            study.tell(trial, (drawn[-1] - 0.13) ** 2)
        return drawn

    assert search(tmp_path / "one", False) == search(tmp_path / "two", True)


def test_bayes_comes_nearer_to_a_known_minimum_than_chance(tmp_path):
    def distance(method):
        own = sweep(method, {"optim.lr": {"min": 0.0, "max": 1.0}})
        (tmp_path / method).mkdir()
        study = open_study(own, tmp_path / method)
        for _ in range(40):
            trial = suggest(study, own, 5)
            study.tell(trial, (trial.params["optim.lr"] - 0.3) ** 2)
        later = [abs(trial.params["optim.lr"] - 0.3) for trial in study.trials[20:]]
        return sum(later) / len(later)

    assert distance("bayes") < 0.5 * distance("random")


def test_successive_halving_stops_what_is_not_among_the_best_third_at_a_rung(tmp_path):
    own = sweep(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3})
    study, stopped = open_study(own, tmp_path), []
    for value in (5.0, 4.0, 6.0, 3.0, 7.0, 4.5, 2.0):
        trial = suggest(study, own, 1)
        for number in (1, 2, 3):
            trial.report(value, number)
            if trial.should_prune():
                stopped.append((value, number))
                break
        study.tell(trial, value if not trial.should_prune() else None, state=None)
    seen, wanted = [], []
    for value in (5.0, 4.0, 6.0, 3.0, 7.0, 4.5, 2.0):
        seen.append(value)
        if value not in sorted(seen)[: max(len(seen) // 3, 1)]:
            wanted.append((value, 2))
    assert stopped == wanted


@pytest.mark.parametrize(("change", "message"), [
    ({"method": "genetic"}, "method: must be grid, random or bayes, not genetic"),
    ({"metrik": {}}, "metrik: no such key. Did you mean 'metric'?"),
    ({"metric": {"goal": "minimize"}}, "metric: must be {name: val/loss, goal: minimize} or such"),
    ({"parameters": {}}, "parameters: must name the keys that are searched"),
    ({"parameters": {"optim.lr": {"min": "1e-4", "max": 1.0}}},
     "min: must be a number, not 1e-4; YAML reads 1e-4 as a text: write 1.0e-04"),
    ({"parameters": {"optim.lr": {"min": 2.0, "max": 1.0}}}, "min must be below max, not 2.0 and 1.0"),
    ({"parameters": {"optim.lr": {"distribution": "normal", "mu": 0}}}, "normal is not known here"),
    ({"parameters": {"optim": {"parameters": {"lr": {"value": 1}}}}}, "write dotted keys such as optim.lr"),
    ({"parameters": {"module.networks": {"values": [["gcn", "sage"]]}}}, "write a list as one text, such as '[gcn,sage]'"),
    ({"method": "grid"}, "parameters.optim.lr: a grid needs values: [...], not a range"),
    ({"early_terminate": {"type": "hyperband"}}, "early_terminate: must be {type: hyperband, min_iter: N, eta: 3}"),
    ({"command": ["python", "train.py"]}, "command: must be ['${env}', fivefold, train, experiment=..., '${args_no_hyphens}']"),
])
def test_what_a_file_must_not_say_is_named_with_what_to_write(change, message):
    content = {"method": "random", "metric": {"name": "val/loss"}, "command": COMMAND, "parameters": {"optim.lr": {"min": 0.1, "max": 0.2}}}
    with pytest.raises(ConfigError) as caught:
        checked({**content, **change}, "own", "own.yaml")
    assert str(caught.value).startswith("own.yaml: ")
    assert message in str(caught.value)
