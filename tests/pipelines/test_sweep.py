"""fivefold sweep: no trial is lost or repeated, bad words die before a trial starts, and W&B's own agent runs the same file."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from pipelines import trials as trials_of_sweeps
from pipelines.search import checked, open_study, read_sweep, suggest

SERVER = Path(__file__).resolve().parents[3] / "shared" / "tools" / "fake_wandb_server.py"
SWEEP = {
    "method": "random", "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"optim.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}, "optim.rank": {"values": [2, 4]}},
    "command": ["${env}", "fivefold", "train", "experiment=fira_debug", "trainer.max_steps=40", "trainer.val_every_n_steps=10",
                "checkpoint.every_n_steps=10", "trainer.log_every_n_steps=1", "logger=csv", "trainer.threads=1", "${args_no_hyphens}"],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def whole(fivefold_in, tmp_path_factory, cache):
    """A file, and the folder of its sweep of two trials that nothing interrupted."""
    place = tmp_path_factory.mktemp("whole")
    (place / "own.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    done = fivefold_in(place, "sweep", "own.yaml", "--local", "--trials", "2", f"data.cache={cache}", f"run.root={place}")
    assert done.returncode == 0, done.stderr
    return place / "own.yaml", place / "sweep-own"


def trials(folder):
    with (folder / "trials.csv").open(newline="") as read:
        return list(csv.DictReader(read))


def starts(folder):
    return [len(json.loads((trial / "run.json").read_text())["started"]) for trial in sorted(folder.glob("trial-[0-9]*[0-9]"))]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_was_cut_off_goes_on_to_the_trials_of_one_that_was_not(how, whole, fivefold_in, tmp_path, cache):
    words = ["sweep", str(whole[0]), "--local", "--trials", "2", f"data.cache={cache}", f"run.root={tmp_path / 'cut'}"]
    begun = fivefold_in(tmp_path, *words, wait=False)
    folder = tmp_path / "cut" / "sweep-own"
    wait_for(lambda: (folder / "trial-001" / "checkpoints" / "last.ckpt").exists())
    begun.send_signal(how)
    said = begun.communicate(timeout=120)[0]
    assert begun.returncode == (130 if how == signal.SIGINT else -9), said
    assert how == signal.SIGKILL or "the same command goes on" in said
    again = fivefold_in(tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert trials(folder) == trials(whole[1])
    assert starts(folder)[0] == 1
    assert (folder / "parallel_coordinates.png").stat().st_size > 5000
    other = fivefold_in(tmp_path, *words, "optim.schedule.warmup=0.2")
    assert (other.returncode, other.stdout) == (2, "")
    assert "holds a sweep of other settings" in other.stderr


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_stopped_where_it_stands(here, tmp_path, cache, file):
    grid = {**SWEEP, "method": "grid", "parameters": {"optim.lr": {"values": [0.02, 1e-9]}}, "early_terminate": {"type": "hyperband",
            "min_iter": 1, "eta": 3}, "command": [word.replace("max_steps=40", "max_steps=400") for word in SWEEP["command"]]}
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    done = here("sweep", str(file), "--local", f"data.cache={cache}", f"run.root={tmp_path}", "trainer.val_every_n_steps=40")
    assert done.returncode == 0, done.stderr
    first, second = trials(tmp_path / "sweep-own")
    assert (first["state"], second["state"]) == ("complete", "pruned")
    record = json.loads((tmp_path / "sweep-own" / "trial-001" / "run.json").read_text())
    assert record["status"] == "interrupted"


@pytest.mark.parametrize(("words", "message"), [
    ([], "sweep: which one? Write fivefold sweep NAME"),
    (["fira_rnk"], "fira_rnk: no such sweep. Did you mean 'fira_rank'?"),
    (["fira_rank", "--trials", "none"], "trials: must be a whole number above 0, not none"),
    (["fira_rank", "optim.rank=3"], "optim.rank: is searched by configs/sweep/fira_rank.yaml"),
    (["fira_rank", "trainer.max_stps=3"], "trainer.max_stps: no such key"),
    (["OWN", "--local"], "trials: how many? random never ends; write --trials 20"),
])
def test_bad_words_are_answered_in_one_line_before_a_trial_starts(words, message, here, tmp_path, file):
    done = here("sweep", *(word.replace("OWN", str(file)) for word in words), f"run.root={tmp_path / 'runs'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_value_that_a_trial_would_refuse_is_found_before_any_trial(here, file):
    file.write_text(yaml.safe_dump({**SWEEP, "parameters": {"optim.rank": {"values": [2, -4]}}}, sort_keys=False))
    done = here("sweep", str(file), "--dry-run")
    assert done.returncode == 2
    assert "optim.rank: must be above 0, not -4" in done.stderr


def test_trials_that_fail_one_after_another_stop_the_sweep_and_their_words_are_shown(here, tmp_path, file):
    done = here("sweep", str(file), "--local", "--trials", "9", "--parallel", "2", "data.source=files", "data.train=[/nowhere.txt]",
                f"run.root={tmp_path}")
    assert done.returncode == 1
    assert "3 trials in a row failed" in done.stderr
    assert "/nowhere.txt" in done.stderr
    assert {trial["state"] for trial in trials(tmp_path / "sweep-own")} <= {"fail", "running"}


@pytest.mark.slow
@pytest.mark.skipif(not SERVER.is_file(), reason="needs ../shared/tools, which lies beside the project: a small W&B server")
def test_wandbs_agent_runs_the_same_file(fivefold_in, tmp_path, cache, file):
    pytest.importorskip("sweeps", reason="the small server draws with W&B's own engine, which `make test` installs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "fivefold"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -P -m pipelines \"$@\"\n")
    script.chmod(0o755)
    environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40,
                   "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        words = [word.replace("logger=csv", "logger=wandb") for word in SWEEP["command"]]
        file.write_text(yaml.safe_dump({**SWEEP, "command": words}, sort_keys=False))
        done = fivefold_in(tmp_path, "sweep", str(file), "--trials", "2", f"run.root={tmp_path / 'runs'}", f"data.cache={cache}",
                           "trainer.max_steps=20", env=environment)
    finally:
        server.kill()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "other machines join with: fivefold sweep sweep=fivefold/" in done.stdout
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json")]
    assert [record["status"] for record in records] == ["finished"] * 2, done.stdout + done.stderr
    chosen = {tuple(word for word in record["started"][0]["command"] if word.startswith("optim.")) for record in records}
    assert len(chosen) == 2
    assert all(len(words) == 2 for words in chosen)


@pytest.mark.parametrize(("words", "group"), [([], "logger.group=found"), (["logger.group=own"], "logger.group=own")])
def test_the_trials_of_a_local_search_are_a_group(words, group, file, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(trials_of_sweeps.subprocess, "Popen", lambda command, **rest: started.append(command))
    sweep, folder = read_sweep(str(file)), tmp_path / "found"
    folder.mkdir()
    study = open_study(sweep, folder)
    trials_of_sweeps.Trials(sweep, study, folder, words).start(suggest(study, sweep, 1))
    assert [word for word in started[0] if word.startswith("logger.group=")] == [group]


class EndedAtOnce:
    """Stands for a training that has left its record."""

    def __init__(self, command, **rest):
        words = dict(word.split("=", 1) for word in command if "=" in word)
        folder = Path(words["run.root"]) / words["run.name"]
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"status": "interrupted", "results": {"val/loss": float(words["optim.lr"])}}))

    def poll(self):
        return 0

    def wait(self):
        return 0

    def send_signal(self, number):
        pass


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", ["grid", "random"])
@pytest.mark.parametrize("how", ["ctrl-c", "killed before", "killed after"])
def test_an_end_at_any_write_of_the_record_loses_no_trial_and_no_setting(how, method, tmp_path, monkeypatch, capfd):
    parameters = {"optim.lr": {"values": [0.1, 0.2, 0.3]}, "optim.rank": {"values": [2]}} if method == "grid" else SWEEP["parameters"]
    sweep = checked({**SWEEP, "method": method, "parameters": parameters}, "own", "own.yaml")
    monkeypatch.setattr(trials_of_sweeps.subprocess, "Popen", EndedAtOnce)
    monkeypatch.setattr(trials_of_sweeps, "LOOK", 0.001)
    write, unlink = JournalFileBackend.append_logs, os.unlink

    def search(folder, at=None):
        """Search for three trials; what ends the search comes at the `at`-th write."""
        folder.mkdir(exist_ok=True)
        writes = iter(range(10**6))

        def append(self, logs):
            number = next(writes)
            if number == at and how == "ctrl-c":
                monkeypatch.setattr(os, "unlink", lambda path: (unlink(path), os.kill(os.getpid(), signal.SIGINT))[0])  # inside the lock
            if number == at and how == "killed before":
                raise Killed
            write(self, logs)
            monkeypatch.setattr(os, "unlink", unlink)
            if number == at and how == "killed after":
                raise Killed

        monkeypatch.setattr(JournalFileBackend, "append_logs", append)
        study = open_study(sweep, folder)
        list(trials_of_sweeps.Trials(sweep, study, folder, []).run(3))
        return next(writes), [(trial.state, trial.params, trial.value) for trial in study.get_trials()]

    total, wanted = search(tmp_path / "whole")
    assert [state.name for state, _, _ in wanted] == ["COMPLETE"] * 3
    cut = 0
    for at in range(2, total):  # the first two make the study
        folder = tmp_path / f"at-{at}"
        try:
            search(folder, at)
        except (Killed, KeyboardInterrupt):
            cut += 1
        assert search(folder)[1] == wanted, at
    assert cut >= total - 3  # Ctrl-C at the last write finds all trials at an end


class Deaf(EndedAtOnce):
    """Stands for a training that takes long to save its checkpoint."""

    def poll(self):
        return None


def test_a_second_ctrl_c_no_longer_waits_for_the_trials(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(trials_of_sweeps.subprocess, "Popen", Deaf)
    monkeypatch.setattr(trials_of_sweeps, "LOOK", 0.01)
    monkeypatch.setattr(Deaf, "send_signal", lambda self, number: os.kill(os.getpid(), signal.SIGINT))  # the user's second
    monkeypatch.setattr(trials_of_sweeps.Trials, "look", lambda self: iter(os.kill(os.getpid(), signal.SIGINT) or ()))
    sweep = checked(SWEEP, "own", "own.yaml")
    trials = trials_of_sweeps.Trials(sweep, open_study(sweep, tmp_path), tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        list(trials.run(3))
    assert [one.trial.number for one in trials.running] == [0]
    assert "once more: do not wait for them" in capfd.readouterr().err
