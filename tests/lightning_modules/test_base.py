"""How many optimizer steps a run has, known before it starts and without touching its loaders."""

import pytest
import torch

from tests.pipelines.tiny import Line, Numbers, trainer


class Endless:
    """Batches without end."""

    def __iter__(self):
        while True:
            yield torch.ones(2, 3)


@pytest.mark.parametrize("limits", [
    {"max_steps": 5},
    {"max_epochs": 3},
    {"max_epochs": 2, "limit_train_batches": 4},
    {"max_epochs": 2, "limit_train_batches": 0.5},
    {"max_epochs": 2, "limit_train_batches": 50},
    {"max_epochs": 3, "max_steps": 4, "limit_train_batches": 2},
    {"max_epochs": 1, "max_steps": 400},
    {"max_epochs": 2, "overfit_batches": 3},
])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_steps_announced_to_the_schedule_are_the_steps_that_are_made(limits, accumulate):
    module, made = Line(), trainer(**limits, accumulate_grad_batches=accumulate)
    made.fit(module, datamodule=Numbers(batches=7))
    assert module.total_steps == made.global_step > 0


def test_several_loaders_count_as_the_longest(monkeypatch):
    class Pair(Numbers):
        def train_dataloader(self):
            return {"a": Numbers(3).train_dataloader(), "b": Numbers(5).train_dataloader()}

    module, made = Line(), trainer(max_epochs=2)
    monkeypatch.setattr(Line, "training_step", lambda self, batch, batch_idx: self.layer(batch["a"]).mean())
    made.fit(module, datamodule=Pair(0))
    assert module.total_steps == made.global_step == 10


def test_data_without_a_length_needs_max_steps_or_a_limit():
    class Stream(Numbers):
        def train_dataloader(self):
            return Endless()

    with pytest.raises(ValueError, match=r"trainer\.max_epochs: this training data has no length; give trainer\.max_steps"):
        trainer(max_epochs=1).fit(Line(), datamodule=Stream(7))
    module = Line()
    trainer(max_epochs=1, limit_train_batches=4).fit(module, datamodule=Stream(7))
    assert module.total_steps == len(module.seen) == 4


def test_a_run_without_an_end_has_no_schedule():
    with pytest.raises(ValueError, match=r"trainer\.max_steps: the schedule needs an end"):
        trainer(max_epochs=-1).fit(Line(), datamodule=Numbers(7))
