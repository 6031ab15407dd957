import json
import subprocess
import sys

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_text import SHARED_TEXT, byte_tokenizer, documents, needs_shared_text, write_dataset

from datamodules.fira import FiraData, FiraDataConfig
from datamodules.rows import DataError


@pytest.fixture
def made(tmp_path):
    """Make the data of some settings, ready for batches; small blocks, a tokenizer of bytes, a cache of its own."""

    def make(**settings):
        small = {"block_size": 16, "batch_size": 2, "vocab_size": 257, "cache": str(tmp_path / "cache"), "seed": 1}
        data = FiraData(FiraDataConfig(**(small | settings)))
        data.setup()
        return data

    return make


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in splits.items():
        (folder / f"{split}.txt").write_text("\n".join(texts))
    return str(folder)


def stored(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())


def text_of(data, loader):
    return data.tokenizer.decode([int(label) for batch in loader for label in batch["labels"].flatten() if label >= 0])


def test_a_folder_gives_its_own_splits(made, tmp_path):
    texts = documents(40)
    data = made(root=write(tmp_path / "a", train=texts[:20], valid=texts[20:30], test=texts[30:]))
    end = data.tokenizer.eos_token
    assert text_of(data, data.val_dataloader()) == "".join(text + end for text in texts[20:30])
    assert text_of(data, data.test_dataloader()) == "".join(text + end for text in texts[30:])
    assert {split: facts.documents for split, facts in data.facts.items()} == {"train": 20, "valid": 10, "test": 10}


def test_without_validation_files_a_share_is_held_out_and_never_trained_on(made, tmp_path):
    texts = documents(200, longest=5)
    data = made(root=write(tmp_path / "a", train=texts), valid_fraction=0.2, block_size=1, batch_size=1)
    held_out = text_of(data, data.val_dataloader()).split(data.tokenizer.eos_token)[:-1]
    trained = data.tokenizer.decode(data._streams["train"].tokens[1:].tolist()).split(data.tokenizer.eos_token)[:-1]
    plain = [text for text in texts if "<|endoftext|>" not in text]  # spelled out, it looks like an end when decoded
    assert {text for text in held_out if text in plain} | {text for text in trained if text in plain} == set(plain)
    assert not set(held_out) & set(trained) & set(plain)
    assert data.facts["train"].documents + data.facts["valid"].documents == 200


def test_tokens_per_byte_are_those_of_the_held_out_text(made, tmp_path):
    data = made(root=write(tmp_path / "a", train=["ab " * 200], valid=["ab ab é"]), vocab_size=259)
    ids = data.tokenizer("ab ab é")["input_ids"]
    assert len(ids) < 8
    assert data.tokens_per_byte == (len(ids) + 1) / (8 + 1)
    assert data.bytes_per_token == 1 / data.tokens_per_byte


def test_the_cache_follows_every_setting_that_changes_the_tokens_and_no_other(made, tmp_path):
    texts = documents(60)
    root = write(tmp_path / "a", train=texts[:50], valid=texts[50:])
    made(root=root)
    assert len(stored(tmp_path)) == 2
    made(root=root, block_size=8, batch_size=3, seed=5, workers=2)
    made(root=write(tmp_path / "elsewhere", train=texts[:50], valid=texts[50:]))
    assert len(stored(tmp_path)) == 2
    for more, settings in enumerate([{"max_bytes": 300}, {"valid_bytes": 50}, {"valid_documents": 3}], start=3):
        made(root=root, **settings)
        assert len(stored(tmp_path)) == more, settings  # only the part that changed: a byte tokenizer is the same for all
    made(root=root, vocab_size=300)
    made(root=root, unit="file")
    assert len(stored(tmp_path)) == 9
    made(root=write(tmp_path / "a", train=texts[:49], valid=texts[50:]))
    assert len(stored(tmp_path)) == 10


def test_a_tokenizer_is_trained_on_the_training_text_alone(made, tmp_path):
    data = made(root=write(tmp_path / "a", train=["ab" * 300], valid=["xyzxyz" * 300]), vocab_size=262)
    merged = [token for token in data.tokenizer.get_vocab() if len(token) > 1 and token != data.tokenizer.eos_token]
    assert merged
    assert not any(set(token) & set("xyz") for token in merged)


def test_too_short_a_text_is_refused_with_what_to_lower(made, tmp_path):
    with pytest.raises(DataError, match=r"has 6 tokens, too few for one block of 16; lower data\.block_size"):
        made(root=write(tmp_path / "a", train=["a bcd"], valid=["ab"]))


def test_test_batches_without_test_files_are_refused(made, tmp_path):
    with pytest.raises(DataError, match=r"there are no test files; name some with data\.test"):
        made(root=write(tmp_path / "a", train=documents(20), valid=["ab"])).test_dataloader()


@pytest.mark.parametrize(("settings", "said"), [
    ({"source": "hub"}, "source: must go with hub"), ({"source": "files"}, "source: must go with root or train"),
    ({"hub": "a/b", "root": "c"}, "hub: choose it or local files"), ({"root": "a", "train": ["b"]}, "root: names all files"),
    ({"valid": ["b"]}, "train: must name the training files"), ({"shuffle": 0}, "shuffle: must be above 0"),
    ({"stream_epoch": 0}, "stream_epoch: must be above 0"), ({"workers": -1}, "workers: must not be negative"),
    ({"valid_fraction": 1.0}, "valid_fraction: must lie between"), ({"vocab_size": 256}, "vocab_size: must lie in 257"),
    ({"template": "{}"}, "template: takes plain keys"),
])
def test_settings_that_cannot_go_together_are_refused(settings, said):
    with pytest.raises(ValueError) as error:
        FiraDataConfig(**settings)
    assert str(error.value).startswith(said)


def test_settings_without_effect_are_named():
    assert not {"hub", "stream_epoch", "shuffle", "valid_split"} & set(FiraDataConfig(hub="a/b").without_effect())
    assert "max_bytes" in FiraDataConfig(hub="a/b").without_effect()
    assert {"stream_epoch", "shuffle"} <= set(FiraDataConfig(hub="a/b", streaming=False).without_effect())
    assert "max_bytes" not in FiraDataConfig(hub="a/b", streaming=False).without_effect()
    assert "text_key" in FiraDataConfig(root="a", template="{b}").without_effect()
    assert {"hub", "subset", "revision", "streaming", "shuffle"} <= set(FiraDataConfig(root="a").without_effect())


@pytest.fixture
def hub(tmp_path):
    texts = documents(120, seed=4)
    write_dataset(tmp_path / "hub", texts[:100], files=4)
    write_dataset(tmp_path / "hub", texts[100:], split="validation")
    return str(tmp_path / "hub"), texts


def test_a_hub_dataset_streams_its_training_split_and_stores_the_first_validation_documents(made, hub, tmp_path):
    folder, texts = hub
    data = made(hub=folder, valid_documents=7, batch_size=3)
    assert len(stored(tmp_path)) == 1
    assert text_of(data, data.val_dataloader()) == "".join(text + data.tokenizer.eos_token for text in texts[100:107])
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False)
    loader = data.train_dataloader()
    assert len(loader) == 10000
    batch = next(iter(loader))
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 16)
    assert torch.equal(batch["input_ids"][0, 1:], batch["labels"][0, :-1])
    assert torch.equal(batch["input_ids"][1:, 0], batch["labels"][:-1, -1])


def test_without_a_validation_split_a_share_of_the_stream_is_held_out(made, hub):
    folder, texts = hub
    data = made(hub=folder, valid_split=None, valid_fraction=0.2, shuffle=1, batch_size=1)
    valid = text_of(data, data.val_dataloader())
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False)
    trained = text_of(data, (batch for _, batch in zip(range(150), data.train_dataloader())))
    end = data.tokenizer.eos_token
    plain = [text for text in texts[:100] if end not in text]
    assert all((text + end in valid) != (text + end in trained) for text in plain[:40])
    assert sum(text + end in valid for text in plain) > 5


def test_a_hub_dataset_can_be_stored_whole_as_files_are(made, hub):
    folder, texts = hub
    data = made(hub=folder, streaming=False)
    assert data.facts["train"].documents == 100
    assert data.tokenizer.decode(data._streams["train"].tokens[1:].tolist()) == "".join(t + data.tokenizer.eos_token for t in texts[:100])
    assert made(hub=folder, streaming=False, max_bytes=200).facts["train"].text_bytes < 300


class Recorder(L.LightningModule):
    """Train one number, and keep what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []
        self.batches_at = {}  # optimizer step -> batches seen when it was made

    def on_train_batch_end(self, *more):
        self.batches_at.setdefault(self.trainer.global_step, len(self.seen))

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].clone())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, folder, steps, resume=None, **settings):
    module = Recorder()
    trainer = L.Trainer(max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                        callbacks=[ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")], **settings)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return torch.stack(module.seen), module.batches_at


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:.*does not have many workers", "ignore:You passed in a")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"limit_train_batches": 4}, {"accumulate_grad_batches": 3}])
@pytest.mark.parametrize("source", ["hub", "files"])
def test_a_trainer_that_resumes_sees_what_it_would_have_seen(made, hub, tmp_path, source, settings, workers):
    folder = hub[0] if source == "hub" else write(tmp_path / "files", train=hub[1], valid=["ab"])
    options = {"hub": folder, "stream_epoch": 10} if source == "hub" else {"root": folder, "max_bytes": 400}
    whole, batches_at = fit(made(**options, workers=workers), tmp_path / "whole", 12, **settings)
    for step in (3, 4, 11):
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed, _ = fit(made(**options, workers=workers), tmp_path / f"from {step}", 12, checkpoint, **settings)
        assert torch.equal(resumed, whole[batches_at[step] :]), step


def test_the_command_line_reports_what_it_makes_of_the_text_and_a_bad_row_in_one_line(here, tmp_path):
    root = write(tmp_path / "a", train=documents(200), valid=documents(9))
    words = ["train", "experiment=fira_debug", "data.source=files", f"data.root={root}", f"data.cache={tmp_path / 'cache'}",
             "trainer.threads=1", f"run.root={tmp_path}", "--dry-run"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert "training a tokenizer with 512 tokens" in done.stdout
    assert "valid: 9 documents, " in done.stdout
    (tmp_path / "a" / "train.txt").write_bytes(b"fine\nbad \xff\n")
    done = here(*words)
    assert done.returncode == 2
    assert f"error: {tmp_path / 'a' / 'train.txt'}, line 2: byte 9 of the file (0xff) is not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:data.*no effect")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_of_a_stream_stops_a_run_in_one_line(here, tmp_path, workers):
    folder = write_dataset(tmp_path / "hub", [*documents(60), None, *documents(60)])
    write_dataset(folder, documents(5), split="validation")
    done = here("train", "experiment=fira_debug", "data.source=hub", f"data.hub={folder}", f"data.workers={workers}", "data.vocab_size=300",
                f"data.cache={tmp_path / 'cache'}", f"run.root={tmp_path}", f"data.tokenizer={saved(tmp_path)}", "trainer.threads=1")
    assert done.returncode == 2, done.stderr
    part = ", part 1 of 2, row 31" if workers else ", row 61"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {folder}, train{part}: 'text' is null instead of a string")
    assert "Traceback" not in done.stderr


def saved(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_reading_files_needs_none_of_the_heavy_packages():
    code = "import sys, datamodules.text; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@needs_shared_text
def test_real_novels_are_tokenised_byte_for_byte(made):
    path = SHARED_TEXT / "gutenberg" / "valid.txt"
    held_out = str(SHARED_TEXT / "gutenberg" / "test.txt")
    data = made(train=[str(path)], valid=[held_out], vocab_size=600, valid_bytes=20_000, max_bytes=100_000)
    train = data._streams["train"]
    lines = path.read_text().splitlines()[: train.facts.documents]
    assert data.tokenizer.decode(train.tokens[1:].tolist()) == "".join(line + data.tokenizer.eos_token for line in lines)
    assert train.facts.text_bytes == sum(len(line.encode()) + 1 for line in lines)
    assert 100_000 <= train.facts.text_bytes < 110_000


@needs_shared_text
def test_c4_rows_are_read_alike_as_a_file_and_as_a_dataset(made, tmp_path):
    source = SHARED_TEXT / "c4_demo.jsonl"
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "train.jsonl").symlink_to(source)
    settings = {"valid_fraction": 0.1, "tokenizer": str(saved(tmp_path))}
    file = made(train=[str(source)], **settings)
    dataset = made(hub=str(tmp_path / "c4"), streaming=False, valid_split=None, **settings)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert sum(facts.text_bytes for facts in file.facts.values()) == sum(len(row["text"].encode()) + 1 for row in rows)
    assert file.facts == dataset.facts
    for split in ("train", "valid"):
        assert np.array_equal(file._streams[split].tokens, dataset._streams[split].tokens)
