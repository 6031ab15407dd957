import os
import signal

import numpy as np
import pytest
import torch
from small_text import byte_tokenizer, documents

from datamodules.blocks import IGNORED, PADDING, PackedBlocks, TrainingLoader, TrainingOrder, held_out_loader
from datamodules.rows import DataError
from datamodules.tokenization import encode


def predictions(batches):
    """List every (input, label) that the loss would see, in the order of the batches."""
    return [(int(i), int(label)) for batch in batches for i, label in zip(batch["input_ids"].flatten(), batch["labels"].flatten())
            if label != IGNORED]


def some_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, 500, count).astype(np.uint16)


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("count", [2, 8, 9, 57, 64])
def test_every_token_but_the_first_is_predicted_once_from_the_one_before_it(size, count):
    tokens = some_tokens(count)
    blocks = PackedBlocks(tokens, size, keep_tail=True)
    pairs = list(zip(tokens.tolist(), tokens.tolist()[1:]))
    assert predictions([blocks[index] for index in range(len(blocks))]) == pairs
    whole = PackedBlocks(tokens, size, keep_tail=False)
    assert predictions([whole[index] for index in range(len(whole))]) == pairs[: len(pairs) // size * size]


def test_the_tail_is_padded_with_ignored_labels():
    block = PackedBlocks(np.array([1, 2, 3, 4, 5, 6], np.uint32), 4, keep_tail=True, padding_token=9)[1]
    assert block["input_ids"].tolist() == [5, 9, 9, 9]
    assert block["labels"].tolist() == [6, IGNORED, IGNORED, IGNORED]
    assert block["input_ids"].dtype == block["labels"].dtype == torch.int64


def test_a_block_without_tokens_is_all_ignored():
    blocks = PackedBlocks(some_tokens(20), 4, keep_tail=True, padding_token=7)
    rows = blocks.__getitems__([PADDING, 0])
    assert rows["labels"][0].tolist() == [IGNORED] * 4
    assert rows["input_ids"][0].tolist() == [7] * 4
    assert torch.equal(rows["labels"][1], blocks[0]["labels"])


@pytest.mark.parametrize(("batch", "world"), [(3, 1), (3, 2), (2, 3), (6, 1), (1, 6)])
def test_each_epoch_is_a_seeded_permutation_cut_into_whole_batches(batch, world):
    orders = [TrainingOrder(20, batch, 5, rank, world).walk(0, 0) for rank in range(world)]
    steps = 20 // (batch * world)
    epochs = [[index for _ in range(steps) for order in orders for index in next(order)] for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == steps * batch * world
        assert set(epoch) <= set(range(20))
    assert epochs[0] != epochs[1] != epochs[2]
    other_seed = TrainingOrder(20, batch, 6, 0, world).walk(0, 0)
    assert next(other_seed) + next(other_seed) != epochs[0][: 2 * batch]


@pytest.mark.parametrize(("batch", "world"), [(3, 2), (2, 3), (1, 6)])
def test_one_and_many_processes_see_the_same_global_batches(batch, world):
    alone = TrainingOrder(50, 6, 1).walk(0, 0)
    ranks = [TrainingOrder(50, batch, 1, rank, world).walk(0, 0) for rank in range(world)]
    for _ in range(30):  # more than three epochs
        assert next(alone) == [index for rank in ranks for index in next(rank)]


def test_over_many_epochs_every_block_is_left_out_about_equally_often():
    walk = TrainingOrder(10, 4, 0).walk(0, 0)
    counts = np.bincount([index for _ in range(2 * 500) for index in next(walk)], minlength=10)
    assert counts.min() > 340  # 400 on average, a standard deviation of 9
    assert counts.max() < 460


def test_too_little_text_for_a_batch_is_refused():
    with pytest.raises(DataError, match=r"gives 5 blocks, fewer than one batch of 6; lower data\.batch_size"):
        TrainingOrder(5, 3, 0, world_size=2)


def loader(workers=0, batch=3, seed=1, blocks=20, rank=0, world=1):
    packed = PackedBlocks(some_tokens(4 * blocks + 1), 4, keep_tail=False)
    return TrainingLoader(packed, TrainingOrder(blocks, batch, seed, rank, world), workers)


def take(loader, count, epoch=None):
    """Take batches as a trainer does: in epochs, each of them cut short after `epoch` batches if that is given."""
    taken = []
    while True:
        for number, batch in enumerate(loader, start=1):
            taken.append(batch["input_ids"])
            if len(taken) == count:
                return torch.stack(taken)
            if number == epoch:
                break


@pytest.mark.parametrize("epoch", [None, 4, 1])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6, 7, 13])
def test_after_a_restore_the_batches_go_on_as_if_nothing_had_happened(workers, stop, epoch):
    whole = take(loader(), 20, epoch)
    first = loader(workers)
    assert torch.equal(take(first, stop, epoch), whole[:stop])
    second = loader(workers)
    second.load_state_dict(first.state_dict())
    assert torch.equal(take(second, 20 - stop, epoch), whole[stop:])


def test_epochs_that_are_cut_short_see_what_whole_epochs_see():
    assert torch.equal(take(loader(), 18, epoch=2), take(loader(), 18))


def test_a_restore_may_change_the_number_of_workers_and_processes():
    first = loader(batch=6, blocks=40)
    whole = take(loader(batch=6, blocks=40), 10)
    take(first, 4)
    for world in (1, 2, 3):
        ranks = [loader(workers, 6 // world, blocks=40, rank=rank, world=world) for rank, workers in zip(range(world), (2, 0, 0))]
        for rank in ranks:
            rank.load_state_dict(first.state_dict())
        assert torch.equal(torch.cat([take(rank, 6) for rank in ranks], dim=1), whole[4:])


@pytest.mark.parametrize(("options", "name"), [({"seed": 2}, "seed 2, now 1"), ({"blocks": 21}, "blocks 21, now 20")])
def test_the_state_of_other_data_is_refused(options, name):
    with pytest.raises(DataError, match=f"made with other training data \\({name}\\); restore the data section"):
        loader().load_state_dict(loader(**options).state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_a_loader_draws_nothing_from_the_random_numbers_of_the_run(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(loader(workers), 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_the_ctrl_c_that_the_terminal_sends_to_all():
    running = loader(2)
    batches = [take(running, 2)]  # one of each worker: before its first batch, one may not have begun yet
    for worker in running._iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
    batches.append(take(running, 11))
    assert torch.equal(torch.cat(batches), take(loader(), 13))


def test_workers_start_without_a_warning_after_a_tokenizer_was_used(capfd):
    encode(byte_tokenizer(), documents(50))
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    take(loader(2), 2)
    assert capfd.readouterr().err == ""
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4])
def test_held_out_blocks_are_shared_out_once_each_in_equally_many_steps(world, batch):
    tokens = some_tokens(4 * 11 - 2)
    blocks = PackedBlocks(tokens, 4, keep_tail=True)
    ranks = [list(held_out_loader(blocks, batch, rank, world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = [pair for rank in ranks for pair in predictions(rank)]
    assert sorted(seen) == sorted(zip(tokens.tolist(), tokens.tolist()[1:]))
    if world == 1:
        assert predictions(ranks[0]) == list(zip(tokens.tolist(), tokens.tolist()[1:]))
