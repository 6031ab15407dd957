"""One command line on several processes: the same losses under every strategy, and one run that changes its strategy on the way."""

import csv

import pytest

TOLERANCE = 2e-4  # nats: sums over processes are rounded in another order, and a new basis magnifies that about a hundredfold
WORDS = ("train", "experiment=fira_debug", "checkpoint.every_n_steps=3", "optim.gap=4", "optim.schedule.name=constant",
         "optim.schedule.warmup=0", "trainer.log_every_n_steps=1", "trainer.gradient_clip_val=1.0", "trainer.limit_val_batches=2")
STRATEGIES = ["ddp", "fsdp", "deepspeed strategy.stage=1", "deepspeed strategy.stage=2", "deepspeed strategy.stage=3"]


def losses(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def largest_difference(one, two):
    assert len(one) == len(two)
    return max(abs(a - b) for a, b in zip(one, two))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache, fivefold_in):
    """Losses of one process with the whole batch."""
    root = tmp_path_factory.mktemp("alone")
    words = [f"run.root={root}", "run.name=alone", f"data.cache={cache}", "data.batch_size=12", "trainer.max_steps=9"]
    done = fivefold_in(root, *WORDS, *words)
    assert done.returncode == 0, done.stderr
    return losses(root / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_print_the_losses_of_one(strategy, alone, fivefold, tmp_path, cache):
    done = fivefold(*WORDS, f"run.root={tmp_path}", "run.name=two", f"data.cache={cache}", "data.batch_size=6", "trainer.max_steps=9",
                    *f"strategy={strategy} trainer.devices=2".split())
    assert done.returncode == 0, done.stdout + done.stderr
    difference = largest_difference(losses(tmp_path / "two"), alone)
    print(f"strategy={strategy}: largest difference of the loss {difference:.2e}")
    assert difference < TOLERANCE


@pytest.mark.slow
def test_a_run_goes_from_zero_2_on_two_to_fsdp_on_three_to_one_process_as_if_it_had_never_moved(alone, fivefold, tmp_path, cache):
    words = [*WORDS, f"run.root={tmp_path}", "run.name=moving", f"data.cache={cache}"]
    moves = (["strategy=deepspeed", "strategy.stage=2", "trainer.devices=2", "data.batch_size=6", "trainer.max_steps=3"],
             ["strategy=fsdp", "trainer.devices=3", "data.batch_size=4", "trainer.max_steps=6", "run.resume=auto"],
             ["strategy=single", "data.batch_size=12", "trainer.max_steps=9", "run.resume=auto"])
    for move in moves:
        done = fivefold(*words, *move)
        assert done.returncode == 0, done.stdout + done.stderr
    difference = largest_difference(losses(tmp_path / "moving"), alone)
    print(f"moved twice: largest difference of the loss {difference:.2e}")
    assert difference < TOLERANCE
