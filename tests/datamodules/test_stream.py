import io
import random
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from small_text import as_bytes, byte_tokenizer, documents, texts_of, write_dataset

from datamodules.hub import HubDataset
from datamodules.rows import DataError, RowFormat
from datamodules.stream import Lane, StreamLoader, TextStream
from datamodules.text import Share

DOCUMENTS = documents(97, seed=9)


def stream_of(folder, window=10, seed=1, block_size=16, share=None, rows=None):
    dataset = HubDataset(str(folder))
    return TextStream(dataset.split("train", "data.train_split"), f"{dataset}, train", rows or RowFormat(), share or Share(),
                      byte_tokenizer(), block_size, window, seed, {"hub": str(folder), "seed": seed, "shuffle": window})


def documents_of(stream, count, lane=0, lanes=1):
    """List the first `count` documents of a lane, read out of its blocks."""
    texts, tokens = [], []
    for block in Lane(stream, lane, lanes).blocks():
        tokens.extend(block[1:])
        if len(tokens) > 100 * len(texts):  # decode now and then
            texts = texts_of(tokens)
            if len(texts) >= count:
                return texts[:count]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("files", [1, 3])
def test_without_shuffling_the_documents_come_in_order_turn_after_turn(tmp_path, kind, files):
    assert documents_of(stream_of(write_dataset(tmp_path, DOCUMENTS, files, kind), window=1), 2 * 97) == DOCUMENTS * 2


def test_every_token_is_predicted_once_from_the_one_before_it(tmp_path):
    blocks = Lane(stream_of(write_dataset(tmp_path, DOCUMENTS), window=1, block_size=7), 0, 1).blocks()
    expected = [None, *(byte for text in DOCUMENTS for byte in [*text.encode(), None])]
    first = [next(blocks) for _ in range(len(expected) // 7)]
    inputs, labels = ([byte for block in first for byte in as_bytes(block[part])] for part in (slice(None, -1), slice(1, None)))
    assert inputs == expected[: len(inputs)]
    assert labels == expected[1 : len(labels) + 1]


@pytest.mark.parametrize("files", [1, 4])
def test_with_shuffling_each_turn_has_every_document_once_in_another_order(tmp_path, files):
    folder = write_dataset(tmp_path, DOCUMENTS, files)
    texts = documents_of(stream_of(folder), 3 * 97)
    turns = [texts[97 * turn : 97 * (turn + 1)] for turn in range(3)]
    assert [sorted(turn) for turn in turns] == [sorted(DOCUMENTS)] * 3
    assert DOCUMENTS != turns[0] != turns[1] != turns[2]
    assert documents_of(stream_of(folder), 97) == turns[0]
    assert documents_of(stream_of(folder, seed=2), 97) != turns[0]


def test_the_order_of_the_files_changes_with_the_turn_and_the_seed(tmp_path):
    folder = write_dataset(tmp_path, DOCUMENTS[:80], files=8)

    def order(seed, turn):
        rows = [row for table in stream_of(folder, seed=seed).part(turn, 0, 1).iter(10) for row in table["number"]]
        return tuple(dict.fromkeys(number // 10 for number in rows))

    orders = [order(seed, turn) for seed in (1, 2) for turn in (0, 1, 2)]
    assert all(sorted(one) == list(range(8)) for one in orders)
    assert len(set(orders)) == 6


@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize(("files", "lanes"), [(1, 2), (4, 2), (4, 4), (4, 3), (3, 5)])
def test_lanes_share_out_every_document_exactly_once(tmp_path, files, lanes, window):
    folder = write_dataset(tmp_path, DOCUMENTS, files)
    shares = []
    for lane in range(lanes):
        size = sum(len(table["text"]) for table in stream_of(folder, window).part(0, lane, lanes).iter(10))
        shares.append(documents_of(stream_of(folder, window), size, lane, lanes))
    assert Counter(text for share in shares for text in share) == Counter(DOCUMENTS)
    assert max(map(len, shares)) - min(map(len, shares)) <= -(-97 // files)


def loader(stream, workers=0, batch=2, epoch=1000, rank=0, world=1):
    return StreamLoader(stream, batch, epoch, workers, rank, world)


def take(loader, count, epoch=None):
    """Take batches as a trainer does: in epochs, each of them cut short after `epoch` batches if that is given."""
    taken = []
    while True:
        for number, batch in enumerate(loader, start=1):
            taken.append(torch.stack([batch["input_ids"], batch["labels"]]))
            if len(taken) == count:
                return torch.stack(taken)
            if number == epoch:
                break


def through_a_file(state):
    """Store and load a state as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize(("kind", "files"), [("jsonl", 1), ("jsonl", 4), ("parquet", 3)])
def test_after_a_restore_the_batches_go_on_as_if_nothing_had_happened(tmp_path, workers, window, kind, files):
    folder = write_dataset(tmp_path, DOCUMENTS, files, kind)
    whole = take(loader(stream_of(folder, window), workers), 220)  # two turns and a half
    for stop in sorted(random.Random(f"{window} {kind} {files}").sample(range(1, 200), 2 if workers else 8)):
        first = loader(stream_of(folder, window), workers)
        assert torch.equal(take(first, stop), whole[:stop])
        second = loader(stream_of(folder, window), workers)
        second.load_state_dict(through_a_file(first.state_dict()))
        assert torch.equal(take(second, 220 - stop), whole[stop:]), stop


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_stream_can_be_restored_again_and_epochs_do_not_matter(tmp_path, workers):
    folder = write_dataset(tmp_path, DOCUMENTS, 2)
    whole = take(loader(stream_of(folder), workers), 60)
    parts, state = [], loader(stream_of(folder), workers).state_dict()
    for count, epoch in [(7, None), (1, None), (20, 3), (32, 5)]:
        running = loader(stream_of(folder), workers)
        running.load_state_dict(through_a_file(state))
        parts.append(take(running, count, epoch))
        state = running.state_dict()
    assert torch.equal(torch.cat(parts), whole)


def test_the_batch_size_may_change_on_a_restore(tmp_path):
    folder = write_dataset(tmp_path, DOCUMENTS)
    whole = take(loader(stream_of(folder), batch=1), 40)[:, :, 0]
    first, second = loader(stream_of(folder), batch=4), loader(stream_of(folder), batch=3)
    take(first, 4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(take(second, 8).transpose(1, 2).flatten(0, 1), whole[16:40])


def test_an_epoch_has_as_many_batches_as_asked_for(tmp_path):
    running = loader(stream_of(write_dataset(tmp_path, DOCUMENTS)), epoch=5)
    assert len(running) == 5
    epochs = [[batch["input_ids"] for batch in running] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [5, 5]
    assert not torch.equal(torch.stack(epochs[0]), torch.stack(epochs[1]))


@pytest.mark.parametrize(("change", "said"), [
    ({"seed": 2}, "data.seed: 2 here, but the checkpoint's stream was read with 1; set data.seed=1, or start a new run"),
    ({"window": 5}, "data.shuffle: 5 here, but the checkpoint's stream was read with 10"),
])
def test_the_state_of_another_stream_is_refused(tmp_path, change, said):
    folder = write_dataset(tmp_path, DOCUMENTS)
    state = loader(stream_of(folder)).state_dict()
    with pytest.raises(DataError) as error:
        loader(stream_of(folder, **change)).load_state_dict(state)
    assert said in str(error.value)
    with pytest.raises(DataError, match=r"data\.workers: 2 here, but the checkpoint's stream was read with 0"):
        loader(stream_of(folder), workers=2).load_state_dict(state)
    with pytest.raises(DataError, match="read by 1 processes, not by 2; resume on as many"):
        loader(stream_of(folder), rank=1, world=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_of_a_stream_is_named(tmp_path, workers):
    folder = write_dataset(tmp_path, [*DOCUMENTS[:40], None, *DOCUMENTS[:39]])
    with pytest.raises(DataError) as error:
        take(loader(stream_of(folder, window=1), workers), 500)
    where = f"{folder}, train, part 1 of 2, row 21" if workers else f"{folder}, train, row 41"
    assert f"{where}: 'text' is null instead of a string" in str(error.value)


def test_rows_go_on_counting_after_a_restore(tmp_path):
    folder = write_dataset(tmp_path, [*DOCUMENTS[:40], None, *DOCUMENTS[:39]])
    first, second = loader(stream_of(folder, window=4)), loader(stream_of(folder, window=4))
    take(first, 8)
    second.load_state_dict(first.state_dict())
    with pytest.raises(DataError, match="train, row 41: 'text' is null"):
        take(second, 500)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_that_breaks_off_is_named_with_how_far_the_stream_was_read(tmp_path, kind):
    folder = write_dataset(tmp_path, DOCUMENTS, kind=kind, files=2)
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-20])
    stream = stream_of(folder)
    with pytest.raises(DataError) as error:
        [documents_of(stream, 97, part, 2) for part in range(2)]
    assert f"{folder}, train, part " in str(error.value)
    assert str(path) in str(error.value)
    assert "mend that row or file, or check the network" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [["only one"], ["  ", "\t"]])
def test_a_part_without_text_is_an_error_and_not_an_endless_search(tmp_path, texts):
    with pytest.raises(DataError, match=r"part 2 of 2: holds no text to train on; lower data\.workers, or give more text"):
        next(Lane(stream_of(write_dataset(tmp_path, texts)), 1, 2).blocks())


def test_a_stream_leaves_out_exactly_the_documents_that_are_held_out(tmp_path):
    folder = write_dataset(tmp_path, DOCUMENTS[:60] * 2, files=3)
    held_out = {text for text in DOCUMENTS[:60] if Share("valid", 0.3).holds(text)}
    trained = documents_of(stream_of(folder, share=Share("train", 0.3)), 2 * (60 - len(held_out)))
    assert 5 < len(held_out) < 40
    assert Counter(trained) == Counter([text for text in DOCUMENTS[:60] if text not in held_out] * 2)


def test_rows_fill_a_template(tmp_path):
    stream = stream_of(write_dataset(tmp_path, DOCUMENTS), window=1, rows=RowFormat(template="{number}\n### {text}"))
    assert documents_of(stream, 97) == [f"{number}\n### {text}" for number, text in enumerate(DOCUMENTS)]


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_a_stream_draws_nothing_from_the_random_numbers_of_the_run(tmp_path, workers, capfd):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(loader(stream_of(write_dataset(tmp_path, DOCUMENTS)), workers), 9)
    assert torch.equal(torch.get_rng_state(), before)
    assert "fork" not in capfd.readouterr().err


def rank_of_two(rank, folder, store):
    """What one of two processes does: read, store the state that all share, restore it, read on."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole = take(loader(stream_of(folder), workers=2, rank=rank, world=2), 40)
    first = loader(stream_of(folder), workers=2, rank=rank, world=2)
    take(first, 21)
    torch.save(first.state_dict(), f"{store}.state.{rank}")
    dist.barrier()
    second = loader(stream_of(folder), workers=2, rank=rank, world=2)
    second.load_state_dict(torch.load(f"{store}.state.0", weights_only=True))  # only the first process writes a checkpoint
    assert torch.equal(take(second, 19), whole[21:])
    torch.save(whole, f"{store}.{rank}")
    dist.destroy_process_group()


def test_the_checkpoint_of_one_process_restores_the_place_of_all(tmp_path):
    folder = write_dataset(tmp_path / "data", DOCUMENTS, files=4)
    store = str(tmp_path / "store")
    torch.multiprocessing.start_processes(rank_of_two, (folder, store), nprocs=2, start_method="fork")
    states = [torch.load(f"{store}.state.{rank}") for rank in range(2)]
    assert states[0] == states[1]
    assert states[0]["processes"][0] != states[0]["processes"][1]
    seen = [{text for worker in range(2) for text in texts_of(torch.load(f"{store}.{rank}")[worker::2, 1].flatten())} & set(DOCUMENTS)
            for rank in range(2)]
    assert min(map(len, seen)) > 10
    assert not seen[0] & seen[1]  # less than a turn
