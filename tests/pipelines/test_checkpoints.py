"""Checkpoints are whole or not there, few or many as asked, and remember exactly where a run stood."""

import multiprocessing
import random
import signal
import time

import pytest
import torch

from pipelines.checkpoints import Checkpoints, WholeFiles
from pipelines.errors import ConfigError
from pipelines.runs import newest_checkpoint, steps_saved
from pipelines.schema import CheckpointSection
from tests.pipelines.tiny import Line, Numbers, trainer

MEGABYTES = 8


def save_forever(save, folder, ready):
    torch.set_num_threads(1)
    for step in range(1, 10**6):
        path = folder / "checkpoints" / f"step={step % 2 + 1:08d}.ckpt"
        save({"global_step": step, "weight": torch.full((MEGABYTES * 250_000,), float(step))}, path)
        ready.set()


def killed_while_saving(save, folder):
    """Kill a process at a random moment of its saving; return the checkpoint files it leaves, whole or not."""
    (folder / "checkpoints").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=save_forever, args=(save, folder, ready))
    process.start()
    ready.wait(60)
    time.sleep(random.random() * 0.1)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return sorted((folder / "checkpoints").glob("*.ckpt"))


def is_whole(path):
    try:
        found = torch.load(path, weights_only=True)
    except Exception:
        return False
    return bool((found["weight"] == found["global_step"]).all())


def test_a_process_killed_while_it_saves_leaves_only_whole_checkpoints(tmp_path):
    for trial in range(12):
        left = killed_while_saving(WholeFiles().save_checkpoint, tmp_path / str(trial))
        assert left
        assert all(is_whole(path) for path in left)
        assert newest_checkpoint(tmp_path / str(trial)) == left[-1]


def test_what_a_plain_save_leaves_half_is_told_from_a_whole_one(tmp_path):
    halves = 0
    for trial in range(40):
        folder = tmp_path / str(trial)
        left = killed_while_saving(torch.save, folder)
        assert steps_saved(folder / "checkpoints") == [path for path in left if is_whole(path)]
        halves += sum(not is_whole(path) for path in left)
        if halves >= 2:
            return
    pytest.fail("the test never killed in the middle of a file")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "step=00000001.ckpt"
    WholeFiles().save_checkpoint({"global_step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        WholeFiles().save_checkpoint({"global_step": 2, "unsaveable": lambda: 0}, path)
    assert torch.load(path)["global_step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def fit(folder, batches=20, module=None, resume=None, section=None, **more):
    """Train the tiny model with checkpoints; return it."""
    module = module or Line()
    checkpoints = Checkpoints(folder, section or CheckpointSection(every_n_steps=2, keep=-1))
    made = trainer(**{"max_steps": 9, **more}, callbacks=[checkpoints], plugins=[WholeFiles()])
    made.fit(module, datamodule=Numbers(batches), ckpt_path=resume, weights_only=True if resume else None)
    return module


def names(folder):
    return [path.name for path in steps_saved(folder)]


@pytest.mark.parametrize(("keep", "save_last", "steps"), [
    (-1, True, [2, 4, 6, 8, 9]), (-1, False, [2, 4, 6, 8]), (0, True, [9]), (1, True, [8, 9]), (2, False, [4, 6, 8]),
])
def test_checkpoints_are_kept_as_asked_and_last_is_the_newest(tmp_path, keep, save_last, steps):
    fit(tmp_path, section=CheckpointSection(every_n_steps=2, keep=keep, save_last=save_last))
    assert names(tmp_path) == [f"step={step:08d}.ckpt" for step in steps]
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == steps[-1]


def test_steps_are_counted_in_optimizer_steps_and_saved_only_where_an_accumulation_ends(tmp_path):
    module = fit(tmp_path, accumulate_grad_batches=3, max_steps=4)
    assert names(tmp_path) == ["step=00000002.ckpt", "step=00000004.ckpt"]
    assert len(module.seen) == 12


def test_what_a_killed_save_left_beside_is_cleared_by_the_next_run(tmp_path):
    (tmp_path / "step=00000003.ckpt.part").write_bytes(b"half")
    (tmp_path / "last.ckpt.part").symlink_to("step=00000003.ckpt")
    fit(tmp_path)
    assert not list(tmp_path.glob("*.part"))


class Stateful(Numbers):
    """A loader that knows where it is."""

    class Loader:
        def __init__(self, batches: int) -> None:
            self.batches, self.at = batches, 0

        def __len__(self) -> int:
            return self.batches

        def __iter__(self):
            for _ in range(self.batches):
                self.at += 1
                yield torch.full((2, 3), float(self.at - 1))

        def state_dict(self) -> dict:
            return {"at": self.at}

        def load_state_dict(self, state: dict) -> None:
            self.at = state["at"]

    def train_dataloader(self):
        return self.Loader(self.batches)


class AsksLightning(Line):
    """A module that makes the mistake which base.py avoids."""

    def configure_optimizers(self):
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("kind", [Line, AsksLightning])
@pytest.mark.parametrize("step", range(1, 11))
def test_a_loader_goes_on_where_it_was_even_if_the_module_sets_loaders_up_too_early(tmp_path, kind, step):
    def run(callback_folder, resume=None, stop=None):
        module = kind()
        callback = Checkpoints(callback_folder, CheckpointSection(every_n_steps=1, keep=-1))
        made = trainer(max_epochs=2, callbacks=[callback], plugins=[WholeFiles()])
        made.fit(module, datamodule=Stateful(5), ckpt_path=resume, weights_only=True if resume else None)
        return module

    whole = run(tmp_path / "whole")
    assert whole.seen == list(range(10))
    resumed = run(tmp_path / "again", tmp_path / "whole" / f"step={step:08d}.ckpt")
    assert resumed.seen == list(range(step, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_signal_handlers_are_those_of_before_when_training_is_over(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(tmp_path / "a")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    class Fails(Line):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(tmp_path / "b", module=Fails())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Given(Line):
    """A line whose validations have given figures, one after another."""

    def __init__(self, figures):
        super().__init__()
        self.figures = figures

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("val/accuracy", self.figures[self.trainer.global_step - 1])


FIGURES = (0.1, 0.5, 0.3, 0.9, 0.2, 0.9, 0.4, 0.0, 0.3)


@pytest.mark.parametrize(("best_is", "stop", "best"), [("highest", 9, 4), ("highest", 3, 2), ("lowest", 9, 8)])
def test_the_checkpoint_of_the_best_validation_is_kept_beside_the_newest(tmp_path, best_is, stop, best):
    section = CheckpointSection(every_n_steps=100, keep=0, best="val/accuracy", best_is=best_is)
    fit(tmp_path, module=Given(FIGURES), section=section, val_check_interval=1, max_steps=stop)
    assert torch.load(tmp_path / "best.ckpt")["global_step"] == best
    assert names(tmp_path) == [f"step={step:08d}.ckpt" for step in sorted({best, stop})]


def test_a_resumed_run_remembers_how_good_its_best_was(tmp_path):
    section = CheckpointSection(every_n_steps=100, keep=0, best="val/accuracy")
    fit(tmp_path, module=Given(FIGURES), section=section, val_check_interval=1, max_steps=5)
    fit(tmp_path, module=Given((*FIGURES[:5], 0.8, 0.7, 0.6, 0.5)), section=section, val_check_interval=1, resume=tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "best.ckpt")["global_step"] == 4


def test_a_best_metric_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.best: there is no metric val/acc; a validation gives val/accuracy, val/loss"):
        fit(tmp_path, module=Given(FIGURES), section=CheckpointSection(best="val/acc"), val_check_interval=1)
