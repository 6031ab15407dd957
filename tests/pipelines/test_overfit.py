"""trainer=overfit: the same few batches in every epoch, in an interrupted run as in one that was not."""

import torch

from pipelines.build import build
from pipelines.config import compose
from pipelines.overfit import FixedBatches, keep_to
from tests.exactness import assert_same, rows, state
from tests.pipelines.tiny import Line, Numbers, trainer


class Counting:
    """Endless batches that are never the same, and count how many were taken."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield self.taken


def test_the_first_batches_come_again_and_no_others_are_read():
    source = Counting()
    batches = FixedBatches(source, 3)
    assert [list(batches) for _ in range(3)] == [[1, 2, 3]] * 3
    assert (len(batches), source.taken) == (3, 3)
    assert len(FixedBatches([7], 3)) == 1  # a loader with fewer has no more


def test_a_loader_that_is_restored_goes_on_within_its_epoch():
    for taken in range(7):
        whole, other = FixedBatches(range(5), 3), FixedBatches(range(5), 3)
        sequence = [batch for _ in range(4) for batch in whole]
        fresh = FixedBatches(range(5), 3)
        seen = [batch for _, batch in zip(range(taken), (batch for _ in range(9) for batch in fresh))]
        other.load_state_dict(fresh.state_dict())
        assert seen + [batch for _ in range(2) for batch in other] == sequence[: taken + (6 - taken % 3 if taken % 3 else 6)]


def test_lightning_trains_on_them_alone():
    module, data = Line(), Numbers(8)
    keep_to(data, 2)
    trainer(max_steps=7).fit(module, datamodule=data)
    assert module.seen == [0, 1, 0, 1, 0, 1, 0]


def test_a_small_model_learns_its_batches_by_heart(here, cache, tmp_path):
    words = ["train", "experiment=fira_debug", "trainer=overfit", f"run.root={tmp_path}", f"data.cache={cache}", "trainer.threads=1",
             "trainer.max_steps=20", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0", "optim=adamw", "optim.lr=0.02",
             "logger=csv", "checkpoint.every_n_steps=20", "trainer.overfit_batches=1"]
    assert here(*words, "run.name=run").returncode == 0
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_by_heart_that_goes_on_equals_one_that_was_not_interrupted(here, cache, tmp_path):
    words = ["train", "experiment=fira_debug", "trainer=overfit", f"run.root={tmp_path}", f"data.cache={cache}", "trainer.threads=1",
             "trainer.overfit_batches=3", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0", "logger=csv",
             "optim.schedule.name=constant", "optim.schedule.warmup=0", "checkpoint.every_n_steps=4"]
    assert here(*words, "run.name=whole", "trainer.max_steps=8").returncode == 0
    assert here(*words, "run.name=parts", "trainer.max_steps=4").returncode == 0
    assert here(*words, "run.name=parts", "trainer.max_steps=8", "run.resume=auto").returncode == 0
    assert_same(state(tmp_path / "whole")["weights"], state(tmp_path / "parts")["weights"])
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_what_a_method_trains_on_is_taken_from_its_own_loader(cache):
    words = ["experiment=fira_debug", f"data.cache={cache}", "trainer.threads=1"]
    own = build(compose(words), None)
    kept = build(compose([*words, "trainer.overfit_batches=2"]), None)
    for built in (own, kept):
        built.data.prepare_data()
        built.data.setup("fit")
    first = [batch for _, batch in zip(range(2), own.data.train_dataloader())]
    again = list(kept.data.train_dataloader())
    assert len(again) == 2
    for one, two in zip(first, again):
        assert all(torch.equal(one[key], two[key]) for key in one)
