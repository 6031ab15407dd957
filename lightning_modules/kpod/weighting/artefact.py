"""Token weights on disk: weights.npz beside a meta.json that is written last, so that its presence says that all is there."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.rows import DataError
from datamodules.samples import Samples

WEIGHTS, META = "weights.npz", "meta.json"


def write_weights(folder: Path, weights: np.ndarray, samples: Samples, facts: dict[str, Any]) -> None:
    """Write `weights` (L,), flat over the tokens of all samples, as float16, and `facts` about them; a file appears whole or not at all."""
    assert weights.shape == samples.ids.shape, f"{weights.shape} weights of {samples.ids.shape} tokens"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{WEIGHTS}"
    np.savez(part, weights=weights.astype(np.float16))
    os.replace(part, folder / WEIGHTS)
    part = folder / f"part-{META}"
    part.write_text(json.dumps({"samples": samples.key, "tokens": len(weights), **facts}, indent=1))
    os.replace(part, folder / META)


def read_weights(folder: Path, samples: Samples) -> np.ndarray:
    """Return the weight of each token of all samples, (L,) float32: in 0..1 on rationale tokens, 1 elsewhere.

    Raises DataError where there are none, and for those of other samples.
    """
    if not (folder / META).is_file():
        raise DataError(f"{folder}: holds no finished token weights; train them first (experiment=kpod_weights), or set module.weights=off")
    facts = json.loads((folder / META).read_text())
    if facts["samples"] != samples.key:
        raise DataError(f"{folder}: these token weights are of other samples ({facts['samples']}, now {samples.key}); "
                        "restore the data section that they were made with, or train them again")
    weights = np.load(folder / WEIGHTS)["weights"].astype(np.float32)
    assert weights.shape == samples.ids.shape, f"{weights.shape} weights of {samples.ids.shape} tokens"
    return weights


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what is known about finished weights: their means, the settings that they were made with, the last validation."""
    return json.loads((folder / META).read_text())
