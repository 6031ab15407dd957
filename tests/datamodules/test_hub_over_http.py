"""Streaming over the network, against a stand-in for the Hub: the client packages are the real ones."""

import json
import os
import subprocess
import sys

from small_text import byte_tokenizer, documents, write_dataset
from stand_in_hub import COMMIT, stand_in_hub

READER = """
import json, sys
from datamodules.fira import FiraData, FiraDataConfig
from datamodules.rows import DataError

def made(**settings):
    small = {"hub": "some/data", "subset": "en", "block_size": 16, "batch_size": 2, "shuffle": 10, "seed": 1}
    data = FiraData(FiraDataConfig(**(small | json.loads(sys.argv[1]) | settings)))
    data.setup()
    data.trainer = None
    return data

def take(loader, count):
    return [batch["labels"].tolist() for _, batch in zip(range(count), loader)]

def refusal(**settings):
    try:
        made(**settings)
    except DataError as error:
        return str(error)

found = {"refused": [refusal(hub="nobody/nothing"), refusal(subset="fr"), refusal(valid_split="dev")]}
for workers in (0, 2):
    data = made(workers=workers)
    whole = take(data.train_dataloader(), 30)
    first, second = data.train_dataloader(), made(workers=workers).train_dataloader()
    take(first, 11)
    second.load_state_dict(first.state_dict())
    found[workers] = [whole, take(second, 19)]
print(json.dumps(found | {"valid": data.facts["valid"].documents, "revision": first.state_dict()["identity"]["revision"]}))
"""


def test_a_dataset_on_the_hub_is_read_over_the_network_and_restored_exactly(tmp_path):
    folder = write_dataset(tmp_path / "hub", documents(80), files=4)
    write_dataset(folder, documents(9, seed=1), split="validation")
    splits = [{"split": split, "path": f"{split}-*.jsonl"} for split in ("train", "validation")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps([{'config_name': 'en', 'data_files': splits}])}\n---\n")
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    settings = {"cache": str(tmp_path / "cache"), "tokenizer": str(tmp_path / "tokenizer")}
    with stand_in_hub(folder) as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                       "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", READER, json.dumps(settings)]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["valid"], found["revision"]) == (9, COMMIT)
    for workers in ("0", "2"):
        whole, rest = found[workers]
        assert len(rest) == 19
        assert rest == whole[11:]
    assert any("/resolve/" in path and "train-0000" in path for path in asked)
    name, subset, split = found["refused"]
    assert name.startswith("data.hub=nobody/nothing: no such folder, and no such dataset on the Hub that you may read (")
    assert subset == "data.hub=some/data: has no subset fr; set data.subset to one of: en"
    assert split == "data.hub=some/data: has no split 'dev'; set data.valid_split to one of: train, validation"
