"""Trials of a sweep on this machine: each a training command in a process of its own, watched, stopped early, and taken up again.

A trial is a run folder like any other, `trial-000` and so on in the folder of the sweep. What was drawn is on disk before a trial begins,
and a trial whose end is not on disk goes on from its newest checkpoint, so that an interruption loses and repeats nothing. Ctrl-C takes
effect between two looks at the trials, never inside Optuna: its lock of the journal turns an interruption into other errors.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from pipelines.errors import ConfigError
from pipelines.pictures import curve
from pipelines.runs import is_claimed, read_record
from pipelines.search import Sweep, suggest

LOOK = 0.5  # seconds between two looks at the running trials
IN_A_ROW = 3  # trials that fail one after another before the sweep stops


@dataclass
class Running:
    """A trial whose process has not ended."""

    trial: Trial
    folder: Path
    slot: int
    process: subprocess.Popen[bytes]
    reported: int = 0  # values of the metric that the search has been told
    stopped: bool = False  # by the search


@dataclass
class Trials:
    """The trials of one sweep in `folder`; `words` are added to every command."""

    sweep: Sweep
    study: optuna.Study
    folder: Path
    words: list[str]
    seed: int = 1
    parallel: int = 1
    running: list[Running] = field(default_factory=list)
    failed: int = 0  # in a row
    interruptions: int = 0  # by Ctrl-C

    def run(self, count: int) -> Iterator[FrozenTrial]:
        """Bring the sweep to `count` trials and yield each as it ends; on Ctrl-C, all save a checkpoint first.

        Raises KeyboardInterrupt when they have; after a second Ctrl-C at once, and those that have not ended are left in `running`.
        """
        before = signal.signal(signal.SIGINT, self._note)
        waiting = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        try:
            while waiting or self.running or len(self.study.get_trials(deepcopy=False)) < count:
                while len(self.running) < self.parallel and (waiting or len(self.study.get_trials(deepcopy=False)) < count):
                    known = waiting.pop(0) if waiting else None
                    trial = Trial(self.study, known._trial_id) if known else suggest(self.study, self.sweep, self.seed)
                    self.start(trial)
                self.wait()
                yield from self.look()
        finally:
            self.interrupt()
            signal.signal(signal.SIGINT, before)

    def _note(self, number: int, frame: Any) -> None:
        self.interruptions += 1
        if self.interruptions == 1:
            os.write(2, b"\ninterrupted: the trials save a checkpoint (once more: do not wait for them)\n")

    def wait(self) -> None:
        """Let the time between two looks pass. Raises KeyboardInterrupt if Ctrl-C has come."""
        time.sleep(LOOK)
        if self.interruptions:
            raise KeyboardInterrupt

    def start(self, trial: Trial) -> None:
        """Begin a trial, or go on with one that was interrupted, once a process that still trains it has ended."""
        folder = self.folder / f"trial-{trial.number:03d}"
        while is_claimed(folder):  # by a process that outlived the sweep
            self.wait()
        slot = min(set(range(self.parallel)) - {running.slot for running in self.running})
        finished = read_record(folder).get("status") == "finished"
        drawn = [*self.sweep.line(trial.params), *self.words]
        group = [] if any(word.startswith("logger.group=") for word in drawn) else [f"logger.group={self.folder.name}"]
        command = [*drawn, *group, f"run.root={self.folder}", f"run.name={folder.name}", "run.resume=auto"]
        command = [sys.executable, "-c", ""] if finished else [sys.executable, "-m", "pipelines", "train", *command]
        with (self.folder / f"{folder.name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment(slot),
                                       start_new_session=True)
        self.running.append(Running(trial, folder, slot, process))

    def environment(self, slot: int) -> dict[str, str]:
        """Deal the visible GPUs to trials that run side by side."""
        devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        own = {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot :: self.parallel])} if self.parallel > 1 and devices else {}
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **own}

    def look(self) -> Iterator[FrozenTrial]:
        """Tell the search what is new, stop what it gives up, and yield what has ended."""
        for one in list(self.running):
            ended = one.process.poll()
            self.report(one)
            if ended is not None:
                self.running.remove(one)
                yield self.end(one, ended)

    def report(self, one: Running) -> None:
        """Hand the new values of the metric on; interrupt the trial if the search gives it up."""
        values = curve(one.folder / "metrics.csv", self.sweep.metric)[1]
        for number, value in enumerate(values[one.reported :], one.reported + 1):
            one.trial.report(value, number)
        new, one.reported = len(values) > one.reported, len(values)
        if new and not one.stopped and one.process.poll() is None and one.trial.should_prune():
            one.stopped = True
            one.process.send_signal(signal.SIGINT)

    def end(self, one: Running, status: int) -> FrozenTrial:
        """Write down how a trial ended. Raises RuntimeError when several fail in a row, and ConfigError where the metric is unknown."""
        results: dict[str, Any] = read_record(one.folder).get("results", {})
        if status == 0 and self.sweep.metric not in results:
            raise ConfigError(f"{self.sweep.label}: metric: a run leaves no {self.sweep.metric}; it leaves {', '.join(sorted(results))}")
        if status == 0:
            self.failed = 0
            return self.study.tell(one.trial, results[self.sweep.metric])
        if one.stopped:
            return self.study.tell(one.trial, state=TrialState.PRUNED)
        if status in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        self.failed += 1
        told = self.study.tell(one.trial, state=TrialState.FAIL)
        if self.failed == IN_A_ROW:
            log = self.folder / f"{one.folder.name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"{IN_A_ROW} trials in a row failed; {one.folder.name} said: {' '.join(last)} (all of it is in {log})")
        return told

    def interrupt(self) -> None:
        """Have all trials that still run save a checkpoint, and wait for them until a second Ctrl-C."""
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGINT)
        while self.running and self.interruptions < 2:
            self.running = [one for one in self.running if one.process.poll() is None]
            time.sleep(LOOK / 10 if self.running else 0)
