"""What two runs must have in common to be called the same."""

import csv
import json
import warnings

import torch

from pipelines.build import build
from pipelines.checkpoints import WholeFiles
from pipelines.config import compose


def state(folder):
    checkpoint = WholeFiles().load_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "schedule": checkpoint["lr_schedulers"],
            "step": checkpoint["global_step"], "loops": checkpoint["loops"]["fit_loop"]["state_dict"]}


def assert_same(one, two, path="checkpoint"):
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, path
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for number, (a, b) in enumerate(zip(one, two)):
            assert_same(a, b, f"{path}.{number}")
    else:
        assert one == two, path


def kept(folder):
    """List the questions whose answers are whole on disk."""
    return [json.loads(line)["id"] for part in sorted((folder / "parts").glob("*.jsonl")) for line in part.read_text().splitlines(True)
            if line.endswith("\n")]


def rows(folder):
    """Read metrics.csv without the columns that measure time."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value and "per_sec" not in key} for row in csv.DictReader(file)]


def figures(done):
    """Read what a command printed of its validation."""
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("val/")}


def latest(words):
    """Keep the later of two words for the same key."""
    return list({word.partition("=")[0]: word for word in words}.values())


def fitted_in_process(words, change=None):
    """Train as `words` say in this process, without a folder, warnings and a bar; `change` alters the data before they are used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(compose(words), None)
        if change is not None:
            built.data.setup()
            change(built.data)
        built.trainer.progress_bar_callback.disable()
        built.trainer.fit(built.module, datamodule=built.data)
    return built.module
