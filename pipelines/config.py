"""Compose a run: command line and YAML files -> one typed, frozen RunConfig, checked before torch is imported.

Precedence, lowest first: dataclass defaults, group files (method, then optim, strategy, trainer, logger, cluster), the experiment,
`config=FILE`, the command line.
"""

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from pipelines.catalog import label_of
from pipelines.errors import ConfigError, ConfigWarning
from pipelines.kinds import shown
from pipelines.layers import Stack, stack
from pipelines.pairs import refuse_impossible
from pipelines.schema import COMPONENTS, SECTIONS, Component, RunConfig
from pipelines.sources import parameters_of, schema_of
from pipelines.typed import Keys, Value, fill, idle
from pipelines.words import read_words, split_flags
from pipelines.yamltext import dump

__all__ = ["ConfigError", "ConfigWarning", "compose", "fingerprint", "from_yaml", "split_flags", "to_mapping", "to_yaml"]

SHORT = ("source", "name")  # the first of these that a method's data have is what data=NAME sets
NOT_NUMBERS = {"run": ("name", "root", "resume", "tags", "notes")}  # keys that leave every number of a run as it is


def compose(argv: list[str], command: str = "train") -> RunConfig:
    """Make the configuration that the words of a command line mean; ConfigError, in one line, for whatever does not fit.

    Only `command="train"` asks that the training has an end.
    """
    chosen = stack(read_words(argv))
    values = _values(chosen)
    targets = {name: _target(name, values, chosen) for name in COMPONENTS}
    schemas = {name: _schema(name, targets[name]) for name in COMPONENTS} | SECTIONS
    keys = Keys(schemas, COMPONENTS)
    values = [_in_full(value, schemas["data"], chosen) for value in values]
    spread = [single for value in values for single in keys.spread(value)]
    filled = {name: fill(name, schema, [v for v in spread if v.key.startswith(f"{name}.") and v.key != f"{name}._target_"], keys)
              for name, schema in schemas.items()}
    highest = {keys.field_of(value.key): value for value in spread}
    _warn_overridden(chosen, spread, highest)
    _warn_idle(filled, highest)
    components: dict[str, Any] = {name: Component(str(targets[name].value), filled.pop(name)) for name in COMPONENTS}
    origins = dict.fromkeys(keys.types, "default") | {key: value.origin for key, value in highest.items()}
    config = RunConfig(chosen.method, chosen.experiment, choices=chosen.choices, origins=origins, **components, **filled)
    refuse_impossible(config)
    if command == "train":
        _refuse_endless(config)
    return config


def _values(chosen: Stack) -> list[Value]:
    """List what files and words say, lowest precedence first, not yet checked against any schema."""
    values = [
        Value(f"{section}.{key}", value, layer.origin, layer.where)
        for layer in chosen.layers for section, content in layer.sections.items() for key, value in content.items()
    ]
    return values + [Value(key, text, "command line", text=text) for key, text in chosen.words.settings.items()]


def _in_full(value: Value, schema: type, chosen: Stack) -> Value:
    """Write data=NAME in full, by what the method's data call their choice; ConfigError where they have none, or it is given twice."""
    if value.key != "data":
        return value
    name = next((name for name in SHORT if name in schema.__dataclass_fields__), None)  # type: ignore[attr-defined]
    if name is None:
        raise ConfigError(f"data: is a section, not a group. Write data.KEY={value.text}")
    if (other := chosen.words.settings.get(f"data.{name}")) is not None:
        raise ConfigError(f"data.{name}: given twice, as '{value.text}' and as '{other}'. Keep one")
    return dataclasses.replace(value, key=f"data.{name}")


def _target(section: str, values: list[Value], chosen: Stack) -> Value:
    """Find the highest value of `<section>._target_`."""
    found = [value for value in values if value.key == f"{section}._target_"]
    if not found:
        file = chosen.choices.get(section, chosen.method)
        group = section if section in chosen.choices else "method"
        raise ConfigError(f"{section}._target_: not set. Name the class in configs/{group}/{file}.yaml")
    return found[-1]


def _schema(section: str, target: Value) -> type:
    """Read the dataclass of a component, whose constructor must take what a component of this section is given."""
    try:
        schema, found = schema_of(str(target.value)), parameters_of(str(target.value))
    except ConfigError as error:
        raise ConfigError(f"{section}.{error}{target.where}") from error
    if sorted(found) != sorted(COMPONENTS[section]):
        wanted, given = ", ".join(found), ", ".join(COMPONENTS[section])
        raise ConfigError(f"{section}._target_: {target.value} takes ({wanted}), but {section} is given ({given}){target.where}")
    return schema


def _warn_overridden(chosen: Stack, spread: list[Value], highest: dict[str, Value]) -> None:
    """Warn where a file takes back what a choice on the command line would have set."""
    for group, choice in chosen.words.choices.items():
        own = [v for v in spread if v.origin == label_of(group, choice) and v.value != highest[v.key].value]
        lost = [v for v in own if highest[v.key].text is None]
        if lost and group not in ("method", "experiment"):
            words = " ".join(f"{v.key}={shown(v.value)}" for v in lost)
            text = f"{group}={choice}: {highest[lost[0].key].origin} sets other values. Write {words} to have those of {group}={choice}"
            warnings.warn(ConfigWarning(text), stacklevel=3)


def _warn_idle(filled: dict[str, Any], highest: dict[str, Value]) -> None:
    """Warn of settings that do nothing beside the others; a file that repeats a default, or belongs to a group, has insisted on nothing."""
    idle_for: dict[str, list[str]] = {}  # reason -> keys
    for section, config in filled.items():
        for key, (reason, default) in idle(config, section).items():
            value = highest.get(key)
            if value and (value.text is not None or (value.value != default and not value.origin.startswith("configs/"))):
                idle_for.setdefault(reason, []).append(key)
    for reason, keys in idle_for.items():
        warnings.warn(ConfigWarning(f"{', '.join(keys)}: no effect, because {reason}"), stacklevel=3)


def _refuse_endless(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.max_steps == -1 and trainer.max_epochs is None and not trainer.fast_dev_run:
        raise ConfigError("trainer.max_steps: the training has no end. Write trainer.max_steps=N or trainer.max_epochs=N")


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Return the sections as nested plain dicts, `_target_` first in those of components."""
    found: dict[str, Any] = {}
    for name in COMPONENTS:
        component: Component = getattr(config, name)
        found[name] = {"_target_": component.target, **dataclasses.asdict(component.config)}
    return found | {name: dataclasses.asdict(getattr(config, name)) for name in SECTIONS}


def to_yaml(config: RunConfig) -> str:
    """Write a configuration in full, as a file that `config=FILE` and `from_yaml` read back to the same values.

    The experiment is left out: every value of it stands here, and a later change to it must not reach an old run.
    """
    origin = f" of experiment {config.experiment}" if config.experiment else ""
    title = f"# every value of a run{origin}; fivefold train config=THIS-FILE runs it again\n"
    return title + dump({"defaults": files_chosen(config), **to_mapping(config)})


def files_chosen(config: RunConfig) -> dict[str, str]:
    """Return the file that each group was taken from; the experiment is none of them, since its values stand for themselves."""
    return {group: choice for group, choice in config.choices.items() if group != "experiment"}


def from_yaml(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read back what `to_yaml` wrote, with the words of `overrides` on top; of a strategy that these replace nothing is said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "strategy: the values of config=", ConfigWarning)
        return compose([f"config={path}", *(overrides or [])], command="again")


def fingerprint(config: RunConfig) -> str:
    """Return a short hash of everything that decides a run's numbers: not its name, folder, labels, logger or cluster."""
    mapping = to_mapping(config)
    for section, keys in NOT_NUMBERS.items():
        for key in keys:
            del mapping[section][key]
    del mapping["logger"], mapping["cluster"]
    text = json.dumps({"method": config.method, **mapping}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
