"""The soak: its faults do what they say, its verdicts tell good ends from bad ones, and a stand-in run that forgets a step is found out."""

import csv
import random
import signal
import subprocess
import sys

import pytest
import soak
import torch

from pipelines.runs import is_checkpoint, newest_checkpoint

RUN = """
import csv, json, pathlib, shutil, sys, time
folder, template, steps, forgets = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "forgets"
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
saved = sorted(p for p in (folder / "checkpoints").glob("step=*.ckpt") if p.stat().st_size == pathlib.Path(template).stat().st_size)
begin = int(saved[-1].stem[5:]) if saved else 0
rows = list(csv.DictReader((folder / "metrics.csv").open()))[:begin] if begin else []
for step in range(begin + (forgets and begin > 0), steps):
    rows.append({"step": step})
    with (folder / "metrics.csv").open("w") as file:
        csv.DictWriter(file, ["step"]).writeheader()
        csv.DictWriter(file, ["step"]).writerows(rows)
    shutil.copy(template, folder / "checkpoints" / f"step={step + 1:08d}.ckpt")
    print(f"step {step + 1}/{steps}  loss 1", flush=True)
    time.sleep(0.1)
shutil.copy(template, folder / "checkpoints" / "last.ckpt")
(folder / "run.json").write_text(json.dumps({"status": "finished"}))
"""


@pytest.fixture
def template(tmp_path):
    torch.save({"state_dict": {"weight": torch.arange(400.0)}}, tmp_path / "template.ckpt")
    return tmp_path / "template.ckpt"


class StandIn(soak.Soak):
    """A soak of a script that trains nothing and keeps the rules of run folders, or breaks one."""

    template, kind = None, "keeps"

    def launch(self, name):
        kind = "keeps" if name == "whole" else self.kind
        command = [sys.executable, "-c", RUN, str(self.root / name), str(self.template), str(self.steps), kind]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def soaked(tmp_path, template, kind):
    stand_in = StandIn("method", tmp_path, [], 12, random.Random(3))
    stand_in.template, stand_in.kind = template, kind
    stand_in.run(["killed", "checkpoint cut off", "killed"])
    return stand_in


def test_a_run_that_goes_on_after_every_fault_ends_as_the_undisturbed_one(tmp_path, template):
    stand_in = soaked(tmp_path, template, "keeps")
    assert [(start.fault, start.verdict) for start in stand_in.starts] == [
        ("killed", "killed"), ("checkpoint cut off", "killed"), ("killed", "killed")]
    assert stand_in.same
    text = soak.table([stand_in], 12, ["disk full"])
    assert "| method | killed | 2 | 2 killed | yes |" in text
    assert "| method | checkpoint cut off | 1 | 1 killed | yes |" in text
    assert "Not tried: disk full, which needs root." in text


def test_a_run_that_loses_a_step_when_it_goes_on_is_found_out(tmp_path, template):
    stand_in = soaked(tmp_path, template, "forgets")
    assert not stand_in.same
    assert "| NO |" in soak.table([stand_in], 12, [])


def test_a_checkpoint_that_was_cut_off_is_no_checkpoint_and_the_one_before_is_taken(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (2, 4):
        torch.save({"global_step": step}, tmp_path / "checkpoints" / f"step={step:08d}.ckpt")
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    soak.cut_off(process, tmp_path)
    assert process.returncode == -signal.SIGKILL
    assert not is_checkpoint(tmp_path / "checkpoints" / "step=00000004.ckpt")
    assert newest_checkpoint(tmp_path).name == "step=00000002.ckpt"


def test_a_full_disk_has_no_byte_left(tmp_path):
    (tmp_path / "disk").mkdir()
    if not soak.tmpfs(tmp_path / "disk"):
        pytest.skip("mounting a small disk needs root")
    try:
        (tmp_path / "disk" / "run").mkdir()
        soak.fill_disk(None, tmp_path / "disk" / "run")
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "run" / "more").write_bytes(bytes(2**16))
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize(("fault", "status", "said", "verdict"), [
    ("killed", -9, "", "killed"), ("disk full", 0, "step 1/2\nfinished\n", "went on"),
    ("disk full", 1, "step 1/2\nerror: OSError: No space left\n", "one line"), ("disk full", 1, "error: one\nerror: two\n", "BAD"),
    ("disk full", 1, "Traceback (most recent call last):\nerror: OSError\n", "BAD"), ("disk full", -9, "", "BAD"),
    ("W&B service gone", -6, "", "HUNG"),
])
def test_ends_are_judged_by_status_and_by_what_was_said(fault, status, said, verdict):
    assert soak.Start(fault, 3, status, said).verdict == verdict


def test_a_run_whose_wandb_process_is_killed_goes_on_with_one_warning(tmp_path, cache):
    soaked = soak.Soak("fira", tmp_path, [f"data.cache={cache}"], 8, random.Random(1))
    start = soaked.disturbed("run", "W&B service gone", soak.end_service)
    assert start.verdict == "went on", start.said
    assert "Traceback" not in start.said
    assert start.said.count("warning: W&B's own process has gone") == 1
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(8))
