"""A sweep: a plain W&B sweep file, and its search without any server, by Optuna's samplers and its successive halving.

The same file goes to W&B's server or is searched here. Here, grid takes all combinations in the file's order, random draws, and bayes is
Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), where W&B has a Gaussian process. `early_terminate` of type hyperband is
asynchronous successive halving (Li et al. 2020): a trial that at the rungs min_iter eta^k, counted in values of the metric, is not among
the best 1/eta of those that came so far is stopped.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipelines.catalog import choices_of, label_of, path_of
from pipelines.errors import ConfigError, hint

ARGUMENTS = "${args_no_hyphens}"  # W&B's macro for name=value, our overrides
KEYS = ("name", "description", "project", "entity", "method", "metric", "parameters", "early_terminate", "command", "run_cap")
ETA, RUNGS = 3, 2  # W&B's defaults for eta and s


@dataclass(frozen=True)
class Sweep:
    """A sweep file that has been checked."""

    name: str
    label: str  # of the file, for messages
    content: dict[str, Any]  # as W&B takes it
    metric: str
    words: tuple[str, ...]  # of the training command, without what is searched
    fixed: dict[str, Any]
    space: dict[str, BaseDistribution]

    @property
    def method(self) -> str:
        return self.content["method"]

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return self.content["metric"].get("goal", "minimize")

    @property
    def grid(self) -> list[dict[str, Any]]:
        """List all combinations of a grid, the last parameter running fastest; empty for the other methods."""
        if self.method != "grid":
            return []
        choices = [kind.choices for kind in self.space.values() if isinstance(kind, CategoricalDistribution)]
        return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*choices)]

    def line(self, chosen: Mapping[str, Any]) -> list[str]:
        """Write the words of a trial's training command."""
        return [*self.words, *(f"{key}={value}" for key, value in {**self.fixed, **chosen}.items())]

    def under(self, words: list[str]) -> "Sweep":
        """Leave out those of the file's words that others override. Raises ConfigError for one whose key is searched."""
        keys = [word.partition("=")[0] for word in words]
        for key in keys:
            if key in self.space or key in self.fixed:
                raise ConfigError(f"{key}: is searched by {self.label}; leave it out, or change the file")
        return replace(self, words=tuple(word for word in self.words if word.partition("=")[0] not in keys))

    def for_wandb(self, words: list[str]) -> dict[str, Any]:
        """Return the file as W&B takes it, with more words in its command."""
        before = self.content["command"]
        head = before[: before.index("train") + 1]
        return {**self.content, "command": [*head, *self.words, *words, ARGUMENTS]}

    def corners(self) -> list[list[str]]:
        """Write the commands that together hold every value of a list, and both ends of every range."""
        ends = {key: _ends(kind) for key, kind in self.space.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [self.line(first), *(self.line({**first, key: value}) for key, values in ends.items() for value in values[1:])]


def _ends(kind: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(kind, CategoricalDistribution):
        return kind.choices
    assert isinstance(kind, IntDistribution | FloatDistribution)
    return kind.low, kind.high


def read_sweep(name: str) -> Sweep:
    """Read configs/sweep/NAME.yaml, or a file named by its path; ConfigError for what W&B or the search here would not take."""
    own = name.endswith((".yaml", ".yml"))
    path, label = (Path(name), name) if own else (path_of("sweep", name), label_of("sweep", name))
    if not path.is_file():
        known = choices_of("sweep")
        raise ConfigError(f"{name}: no such sweep.{'' if own else hint(name, known)} There are {', '.join(known)}, or name a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{label}: not YAML: {' '.join(str(error).split())}") from None
    return checked(content, path.stem, label)


def checked(content: Any, name: str, label: str) -> Sweep:
    """Make a Sweep of what a file holds."""
    if not isinstance(content, dict):
        raise ConfigError(f"{label}: must hold method, metric, parameters and command")
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{label}: {key}: no such key.{hint(str(key), KEYS)}")
    if content.get("method") not in ("grid", "random", "bayes"):
        raise ConfigError(f"{label}: method: must be grid, random or bayes, not {content.get('method')}")
    metric = content.get("metric")
    if not isinstance(metric, dict) or "name" not in metric or metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ConfigError(f"{label}: metric: must be {{name: val/loss, goal: minimize}} or such, with goal minimize or maximize")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"{label}: parameters: must name the keys that are searched, such as optim.lr")
    fixed = {key: spec["value"] for key, spec in parameters.items() if isinstance(spec, dict) and "value" in spec}
    space = {key: distribution(spec, f"{label}: parameters.{key}") for key, spec in parameters.items() if key not in fixed}
    if content["method"] == "grid":
        for key, kind in space.items():
            if not isinstance(kind, CategoricalDistribution):
                raise ConfigError(f"{label}: parameters.{key}: a grid needs values: [...], not a range")
    sweep = Sweep(name, label, content, str(metric["name"]), _training_words(content.get("command"), label), fixed, space)
    pruner_of(sweep)
    return sweep


def _training_words(command: Any, label: str) -> tuple[str, ...]:
    """Take the words between `fivefold train` and the parameters."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "train" not in words or words[-1] != ARGUMENTS or words.index("train") == 0 or words[words.index("train") - 1] != "fivefold":
        raise ConfigError(f"{label}: command: must be ['${{env}}', fivefold, train, experiment=..., '{ARGUMENTS}']")
    return tuple(words[words.index("train") + 1 : -1])


def distribution(spec: Any, place: str) -> BaseDistribution:
    """Turn W&B's description of one parameter into Optuna's."""
    if not isinstance(spec, dict):
        raise ConfigError(f"{place}: must be value, values, or min and max")
    if "parameters" in spec:
        raise ConfigError(f"{place}: parameters inside parameters reach a run as one text; write dotted keys such as optim.lr")
    kind = spec.get("distribution") or _implied(spec)
    if kind == "categorical" and isinstance(spec.get("values"), list) and spec["values"] and "probabilities" not in spec:
        return CategoricalDistribution([_single(value, place) for value in spec["values"]])
    if kind not in ("uniform", "int_uniform", "q_uniform", "log_uniform_values"):
        raise ConfigError(f"{place}: write values, or min and max with distribution uniform, int_uniform, q_uniform or "
                          f"log_uniform_values; {kind} is not known here")
    low, high = _number(spec, "min", place), _number(spec, "max", place)
    if not low < high or (kind == "log_uniform_values" and low <= 0):
        raise ConfigError(f"{place}: min must be below max{', and above 0' if kind == 'log_uniform_values' else ''}, not {low} and {high}")
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=kind == "log_uniform_values", step=_number(spec, "q", place) if kind == "q_uniform" else None)


def _implied(spec: dict[str, Any]) -> str:
    """Name the distribution that W&B takes where none is named."""
    if "values" in spec:
        return "categorical"
    return "int_uniform" if all(isinstance(spec.get(key), int) for key in ("min", "max")) else "uniform"


def _single(value: Any, place: str) -> Any:
    if isinstance(value, list | dict):
        raise ConfigError(f"{place}: values: write a list as one text, such as '[gcn,sage]', not {value}")
    return value


def _number(spec: dict[str, Any], key: str, place: str) -> float:
    value = spec.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        digits = isinstance(value, str) and value.replace(".", "").replace("-", "").replace("e", "").isdigit()
        raise ConfigError(f"{place}: {key}: must be a number, not {value}"
                          + (f"; YAML reads {value} as a text: write {float(str(value)):.1e}" if digits else ""))
    return value


def pruner_of(sweep: Sweep) -> BasePruner:
    """Return what stops trials early; `max_iter` and `s` name the same rungs from above, as W&B has it."""
    rule = sweep.content.get("early_terminate")
    if not rule:
        return NopPruner()
    eta = rule.get("eta", ETA)
    first = rule.get("min_iter") or rule.get("max_iter", 0) // eta ** rule.get("s", RUNGS)
    if rule.get("type") != "hyperband" or not isinstance(first, int) or first < 1 or not isinstance(eta, int) or eta < 2:
        raise ConfigError(f"{sweep.label}: early_terminate: must be {{type: hyperband, min_iter: N, eta: 3}}, N values of the metric, "
                          "or max_iter with s")
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)


def sampler_of(sweep: Sweep, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if sweep.method == "bayes" else RandomSampler(seed=seed)


def open_study(sweep: Sweep, folder: Path) -> optuna.Study:
    """Open the record of a search, which is written at every step and survives whatever stops it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(storage=storage, pruner=pruner_of(sweep), study_name=sweep.name, direction=sweep.direction,
                               load_if_exists=True)


def suggest(study: optuna.Study, sweep: Sweep, seed: int) -> optuna.Trial:
    """Begin the next trial; what it draws depends on the seed, its number and the trials before it alone.

    It is drawn in memory and goes to the record whole: a process that dies leaves no trial there that lacks a part of its settings.
    """
    trials = study.get_trials(deepcopy=False)
    scratch = optuna.create_study(sampler=sampler_of(sweep, seed + len(trials)), direction=sweep.direction)
    scratch.add_trials(trials)
    if sweep.grid:
        scratch.enqueue_trial(sweep.grid[len(trials)])
    drawn = scratch.ask(sweep.space)
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, params=drawn.params, distributions=drawn.distributions))
    return optuna.Trial(study, study.get_trials(deepcopy=False)[-1]._trial_id)
