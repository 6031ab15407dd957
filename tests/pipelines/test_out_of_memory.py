"""A device that is full: what held it, where that is written down, and the estimate beside it. No device is needed."""

import pytest
import torch

from pipelines.out_of_memory import Held, OutOfMemory, described, estimated
from tests.pipelines.tiny import Line, Numbers, trainer

GB = 10**9
FULL = Held(tensors=70 * GB, reserved=76 * GB, free=GB // 2, total=80 * GB)


class Greedy(Line):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().training_step(batch, batch_idx)


def test_who_has_the_memory_adds_up_to_all_of_it():
    said = described(FULL)
    assert said == ("of 80.00 GB tensors held 70.00, torch kept 6.00 more in pieces, CUDA and other processes had 3.50, "
                    "0.50 were free")
    assert sum(map(float, ("70.00", "6.00", "3.50", "0.50"))) == 80


def test_the_error_names_the_step_the_snapshot_and_the_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.out_of_memory.estimated", lambda folder, total, file: f"estimate of {folder.name} for {total}")
    taken = []
    watch = OutOfMemory(tmp_path / "run", measure=lambda: FULL, snapshot=taken.append)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer(max_steps=9, callbacks=[watch]).fit(Greedy(), datamodule=Numbers(9))
    assert taken == [str(tmp_path / "run" / "out-of-memory" / "snapshot-0.pickle")]
    first, second = caught.value.__notes__
    assert first == f"this was step 4; {described(FULL)}; {taken[0]} shows each block at pytorch.org/memory_viz"
    assert second == f"estimate of run for {80 * GB}"


def test_other_errors_leave_nothing(tmp_path):
    class Wrong(Line):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("shapes")

    watch = OutOfMemory(tmp_path / "run", measure=lambda: FULL, snapshot=print)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer(max_steps=9, callbacks=[watch]).fit(Wrong(), datamodule=Numbers(9))
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_asked_for_the_run_and_the_device_and_all_of_it_is_kept(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\necho "80.0GB: does not fit, 3.00 GB are missing"\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    said = estimated(tmp_path / "run", 80 * GB, tmp_path / "estimate.txt")
    assert said == f"fivefold estimate says: 80.0GB: does not fit, 3.00 GB are missing (all of it in {tmp_path / 'estimate.txt'})"
    first = (tmp_path / "estimate.txt").read_text().splitlines()[0]
    assert first == f"-P -m pipelines estimate config={tmp_path}/run/config.yaml device=80.0GB"


def test_a_run_that_cannot_be_estimated_says_why(tmp_path):
    (tmp_path / "config.yaml").write_text("nonsense: 1\n")
    said = estimated(tmp_path, 80 * GB, tmp_path / "estimate.txt")
    assert said.startswith("fivefold estimate says: ")
    assert "nonsense" in said
