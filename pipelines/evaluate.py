"""fivefold evaluate: load a run's checkpoint and validate it again."""

from pathlib import Path

from pipelines import describe
from pipelines.config import ConfigError, from_yaml, split_flags
from pipelines.runs import ALONE, SETTINGS, named_checkpoint, newest_checkpoint, step_of

FLAGS = ("--help",)


def run(argv: list[str]) -> int:
    """Evaluate `run=FOLDER`, with `checkpoint=FILE` another than its newest, and any `section.key=value` changed."""
    flags, words = split_flags(argv, FLAGS)
    if "--help" in flags:
        print("fivefold evaluate run=FOLDER [checkpoint=FILE] [section.key=value …]\n\n"
              "Validates the newest checkpoint of a run, or the one named, on the run's own data.")
        return 0
    folder, checkpoint, overrides = _sort(words)
    config = from_yaml(folder / SETTINGS, [*_alone(overrides), *overrides])
    found = checkpoint or newest_checkpoint(folder)
    if found is None:
        raise ConfigError(f"run: {folder} holds no checkpoint yet")
    from pipelines.build import build

    built = build(config, None)
    built.trainer.validate(built.module, datamodule=built.data, ckpt_path=found, weights_only=True, verbose=False)
    describe.results_table({"step": step_of(found), **built.record.metrics}, folder, f"evaluated {found.name}")
    return 0


def _alone(words: list[str]) -> list[str]:
    """Evaluate on one process unless the words say otherwise: a checkpoint is the same whatever strategy wrote it."""
    chosen = any(word.startswith(("strategy", "trainer.devices", "trainer.num_nodes")) for word in words)
    return ["checkpoint.sharded=false"] if chosen else ALONE


def _sort(words: list[str]) -> tuple[Path, Path | None, list[str]]:
    """Take run= and checkpoint= out of the words; the rest are overrides."""
    named = {key: value for key, _, value in (w.partition("=") for w in words) if key in ("run", "checkpoint")}
    if "run" not in named:
        raise ConfigError("run: which one? Write fivefold evaluate run=FOLDER")
    folder = Path(named["run"]).expanduser().absolute()
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"run: {folder} is no run folder: it has no {SETTINGS}")
    checkpoint = named_checkpoint(named["checkpoint"]) if "checkpoint" in named else None
    return folder, checkpoint, [w for w in words if w.partition("=")[0] not in ("run", "checkpoint")]
