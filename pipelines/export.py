"""fivefold export: write the model of a run as a folder that transformers (or peft, for adapters) loads, or its checkpoint as one file."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import ConfigError, from_yaml, split_flags
from pipelines.runs import ALONE, PART, SETTINGS, named_checkpoint, newest_checkpoint, step_of

if TYPE_CHECKING:
    from lightning_modules.base import Exportable, OwnFolder

FILE = ".ckpt"  # ends the names of checkpoint files
HELP = """fivefold export run=FOLDER to=FOLDER [checkpoint=PATH] [merge=true]
fivefold export run=FOLDER to=FILE.ckpt [checkpoint=PATH]

Writes the newest checkpoint of a run, or the one named, as safetensors with configuration and tokenizer, whatever the strategy that the
run was trained with. transformers.AutoModelForCausalLM.from_pretrained(FOLDER) loads it. A run with LoRA gives peft's adapter folder, or
with merge=true the whole model with the adapter in it.

A name that ends in .ckpt gets the checkpoint as one file, optimizer state included: what checkpoint.sharded=true has left in parts."""


def run(argv: list[str]) -> int:
    """Export as the words in `argv` say."""
    flags, words = split_flags(argv, ("--help",))
    if "--help" in flags:
        print(HELP)
        return 0
    named = _named(words)
    folder, target = Path(named["run"]).expanduser().absolute(), Path(named["to"]).expanduser().absolute()
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"run: {folder} is no run folder: it has no {SETTINGS}")
    if target.exists() and (target.suffix == FILE or not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"to: {target} exists and is not an empty folder; name another")
    checkpoint = named_checkpoint(named["checkpoint"]) if "checkpoint" in named else newest_checkpoint(folder)
    if checkpoint is None:
        raise ConfigError(f"run: {folder} holds no checkpoint yet")
    if target.suffix == FILE:
        kind = write_file(checkpoint, target)
    else:
        kind = write(load(folder, checkpoint), target, merge=named.get("merge") == "true")
    print(f"{kind} of {folder.name} at step {step_of(checkpoint)}: {target}")
    return 0


def _named(words: list[str]) -> dict[str, str]:
    """Sort the words; ConfigError for missing, unknown and impossible ones."""
    named = {key: value for key, _, value in (word.partition("=") for word in words)}
    if unknown := named.keys() - {"run", "to", "checkpoint", "merge"}:
        raise ConfigError(f"{min(unknown)}: no such key. Write fivefold export run=FOLDER to=FOLDER [checkpoint=PATH] [merge=true]")
    for key, question in (("run", "which one"), ("to", "where")):
        if not named.get(key):
            raise ConfigError(f"{key}: {question}? Write fivefold export run=FOLDER to=FOLDER")
    if named.get("merge", "false") not in ("true", "false"):
        raise ConfigError(f"merge: must be true or false, not {named['merge']}")
    if named.get("merge") == "true" and named["to"].endswith(FILE):
        raise ConfigError("merge: a checkpoint file stays as it was trained; leave merge=true out, or write to=FOLDER")
    return named


def load(folder: Path, checkpoint: Path) -> "Exportable | OwnFolder":
    """Build the network of a run with the weights of a checkpoint; ConfigError for a method that has nothing to export."""
    from lightning_modules.base import Exportable, MethodModule
    from pipelines.build import make_data, make_module, stand_in_trainer
    from pipelines.checkpoints import weights_in
    from pipelines.logs import set_up_logs

    set_up_logs()
    config = from_yaml(folder / SETTINGS, ALONE)
    module, data = make_module(config), make_data(config)
    if type(module).exportable is MethodModule.exportable:
        raise ConfigError(f"run: method {config.method} has no model in the terms of transformers, and no export of its own")
    data.setup("export")
    module._trainer = stand_in_trainer(config, data)  # type: ignore[assignment]
    module.configure_model()
    saved = weights_in(checkpoint)
    module.load_state_dict(saved, strict=module.strict_loading)
    found = module.exportable()
    assert found is not None
    types = {value.dtype for value in saved.values() if value.is_floating_point()}
    if len(types) == 1 and isinstance(found, Exportable):
        found.model.to(types.pop())  # as it was trained, such as wholly in bfloat16
    return found


def write_file(checkpoint: Path, target: Path) -> str:
    """Write a checkpoint as one file, under its final name only when it is whole; return in words what it is."""
    from pipelines.checkpoints import WholeFiles

    files = WholeFiles()
    files.save_checkpoint(files.load_checkpoint(checkpoint, weights_only=True), target)
    return "whole checkpoint"


def write(found: "Exportable | OwnFolder", target: Path, merge: bool) -> str:
    """Write a folder under its final name only when it is whole; return in a word what it holds."""
    from lightning_modules.base import OwnFolder

    adapter = not isinstance(found, OwnFolder) and hasattr(found.model, "peft_config")
    if merge and not adapter:
        raise ConfigError("merge: this run has no adapter to merge; leave merge=true out")
    own = found if isinstance(found, OwnFolder) else _of_transformers(found, merge)
    part = target.with_name(target.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        own.save(part)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return own.kind


def _of_transformers(found: "Exportable", merge: bool) -> "OwnFolder":
    """Say how a network of transformers, or an adapter of peft's, is saved with its tokenizer."""
    from lightning_modules.base import OwnFolder

    model, kind = _adapter(found.model, merge) if hasattr(found.model, "peft_config") else (found.model, "model")

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        found.tokenizer.save_pretrained(folder)

    return OwnFolder(kind, save)


def _adapter(model: Any, merge: bool) -> tuple[Any, str]:
    """Return what is to be saved of a network with an adapter; ConfigError for an adapter whose network would be lost."""
    if merge:
        return model.merge_and_unload(), "merged model"
    if not model.get_base_model().config._name_or_path:
        raise ConfigError("merge: the network under this adapter was trained from nothing and is saved nowhere else; write merge=true")
    return model, "adapter"
