import json
import re

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from small_text import SHARED_TEXT, documents, needs_shared_text, offline, write_dataset

from datamodules.hub import HubCorpus, HubDataset
from datamodules.rows import DataError, RowFormat
from datamodules.text import Share


def corpus(folder, share=None, rows=None, split="train", **names):
    return HubCorpus(HubDataset(str(folder), **names), split, f"data.{split}_split", rows or RowFormat(), share or Share())


def refusal(call):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_documents_of_a_split_come_in_order_from_all_its_files(tmp_path, kind):
    texts = documents(2500)
    write_dataset(tmp_path, texts, 3, kind)
    write_dataset(tmp_path, ["other", "split", "  "], 1, kind, split="validation")
    assert list(corpus(tmp_path)) == texts
    assert list(corpus(tmp_path, split="validation")) == ["other", "split"]


def test_a_share_of_a_split_is_chosen_by_hash_and_cut_off_at_a_number_of_documents(tmp_path):
    texts = documents(300)
    write_dataset(tmp_path, texts)
    train, valid = (list(corpus(tmp_path, Share(part, 0.2))) for part in ("train", "valid"))
    assert not set(train) & set(valid)
    assert sorted(train + valid) == sorted(texts)
    assert list(corpus(tmp_path, Share("valid", 0.2, max_documents=7))) == valid[:7]


def test_subsets_are_told_apart_by_the_card_of_the_dataset(tmp_path):
    for name in ("en", "de"):
        write_dataset(tmp_path / name, [f"{name} text"])
    configs = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("en", "de")]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert list(corpus(tmp_path, subset="de")) == ["de text"]
    assert refusal(lambda: list(corpus(tmp_path, subset="fr"))).endswith("has no subset fr; set data.subset to one of: en, de")
    assert refusal(lambda: list(corpus(tmp_path))).endswith("comes in subsets; set data.subset to one of: en, de")


def test_a_split_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    write_dataset(tmp_path, ["a"])
    write_dataset(tmp_path, ["b"], split="test")
    assert refusal(lambda: list(corpus(tmp_path, split="valid"))) == (
        f"data.hub={tmp_path}: has no split 'valid'; set data.valid_split to one of: test, train")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    assert re.search("cannot be read .*; give a dataset of parquet, JSON lines or text files", refusal(lambda: list(corpus(tmp_path))))


def test_offline_or_with_a_wrong_name_it_says_at_once_what_to_write_instead(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    offline(monkeypatch)
    assert refusal(lambda: list(corpus("allenai/c4", subset="en"))) == (
        "data.hub=allenai/c4: no such folder, and HF_HUB_OFFLINE forbids to ask the Hub; "
        "unset it, or give local files with data.root=FOLDER")
    assert "no such dataset on the Hub that you may read (Repo id must be in the form" in refusal(lambda: list(corpus("a/b/c")))


@pytest.mark.parametrize(("error", "said"), [
    (RepositoryNotFoundError, "no such dataset on the Hub that you may read (answer); write its name as at huggingface.co/datasets"),
    (GatedRepoError, "asks for an agreement; accept it at huggingface.co/datasets/some/name and log in with hf auth login"),
    (RevisionNotFoundError, "has no revision v9; leave data.revision out, or give a branch, tag or commit of the dataset"),
    (None, "the Hub cannot be reached (no route); check the network, or give local files with data.root=FOLDER"),
])
def test_each_answer_of_the_hub_becomes_one_line_with_a_way_out(monkeypatch, error, said):
    def answer(self, name, revision=None, timeout=None):
        assert (name, revision) == ("some/name", "v9")
        request = httpx2.Request("GET", "https://huggingface.co")
        raise error("answer\nmore", response=httpx2.Response(404, request=request)) if error else httpx2.ConnectError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", answer)
    line = refusal(lambda: list(corpus("some/name", revision="v9")))
    assert line.startswith("data.hub=some/name: ")
    assert said in line


def test_a_bad_row_is_named_by_its_number(tmp_path):
    write_dataset(tmp_path, [*documents(1100), None, *documents(100)])
    assert refusal(lambda: list(corpus(tmp_path))).startswith(f"{tmp_path}, train, row 1101: 'text' is null instead of a string")


def test_a_missing_key_names_the_row_and_the_key(tmp_path):
    write_dataset(tmp_path, documents(5))
    assert refusal(lambda: list(corpus(tmp_path, rows=RowFormat("txt")))).endswith("train, row 1: no key 'txt'; set data.text_key=text")
    template = RowFormat(template="{text} {output}")
    assert refusal(lambda: list(corpus(tmp_path, rows=template))).endswith(
        "train, row 1: no key 'output', which data.template names; the row has: number, text")


def test_instruction_rows_fill_a_template(tmp_path):
    rows = [{"instruction": f"What is {n} + {n}?", "input": "", "output": f"It is {2 * n}.", "answer": f"{2 * n}"} for n in range(30)]
    (tmp_path / "train.json").write_text(json.dumps(rows))  # one array, as commonsense_170k comes
    found = list(corpus(tmp_path, rows=RowFormat(template="### Instruction:\n{instruction}\n\n### Response:\n{output}")))
    assert found == [f"### Instruction:\nWhat is {n} + {n}?\n\n### Response:\nIt is {2 * n}." for n in range(30)]


def test_the_key_follows_the_content_and_the_options_and_not_the_folder(tmp_path):
    texts = documents(40)
    one, same = write_dataset(tmp_path / "a", texts, 2), write_dataset(tmp_path / "b", texts, 2)
    key = corpus(one).key()
    assert corpus(same).key() == key
    others = [corpus(one, Share("valid", 0.1)).key(), corpus(one, Share(max_documents=3)).key(),
              corpus(one, rows=RowFormat("number")).key(),
              corpus(write_dataset(tmp_path / "c", [*texts[:-1], "changed"], 2)).key()]
    assert len({key, *others}) == 5


@needs_shared_text
def test_documents_of_c4_pass_through_unchanged(tmp_path):
    source = SHARED_TEXT / "c4_demo.jsonl"
    (tmp_path / "train.jsonl").symlink_to(source)
    assert list(corpus(tmp_path)) == [json.loads(line)["text"] for line in source.read_text().splitlines()]
