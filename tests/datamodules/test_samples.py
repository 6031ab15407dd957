import json
from itertools import pairwise

import numpy as np
import pytest
from small_rationales import some_rows, tokenizer_of
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from datamodules.problems import problems
from datamodules.rationales import Rationale
from datamodules.rows import DataError
from datamodules.samples import ANSWER, PROMPT, Wording, make_samples, opening_tokens, prompt_tokens, steps_of_tokens

FAMILIES = ["gpt2", "t5", "llama"]


def samples_of(tmp_path, rows, family="gpt2", wording=None, max_tokens=10_000):
    return make_samples(tmp_path / "samples", rows, wording or Wording(), tokenizer_of(family), max_tokens)


def parts_of(samples, index):
    """The ids of each part of a sample, in order of first appearance."""
    span = samples.span(index)
    ids, steps = samples.ids[span], samples.steps[span]
    return {int(step): ids[steps == step].tolist() for step in dict.fromkeys(steps.tolist())}


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_tokens_of_each_step_decode_to_the_text_of_that_step(tmp_path, family, layout):
    rows, wording, tokenizer = problems({"train": 120}, 6, 3), Wording(layout), tokenizer_of(family)
    samples, left = samples_of(tmp_path, rows, family, wording)
    assert len(samples) == 120
    assert (left.too_long, left.entangled) == (0, 0)
    for index, row in enumerate(rows):
        parts = parts_of(samples, index)
        assert list(parts) == [PROMPT, *range(len(row.steps)), ANSWER]
        assert [tokenizer.decode(parts[step]).strip() for step in range(len(row.steps))] == list(row.steps)
        assert tokenizer.decode(parts[ANSWER][:-1]).strip() == f"Therefore, the answer is {row.answer}"
        assert parts[ANSWER][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_the_text_the_tokens_are_those_of_the_whole_string_and_no_pieces(tmp_path, family):
    rows, tokenizer = some_rows(150), tokenizer_of(family)
    samples, left = samples_of(tmp_path, rows, family)
    assert left.entangled == 0
    for index, row in enumerate(samples.rows):
        ids = samples.ids[samples.span(index)].tolist()
        whole = " ".join(Wording().parts(row))
        plain = tokenizer(whole, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == [*opening_tokens(tokenizer), *plain, tokenizer.eos_token_id]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_cut_at_the_tokens_that_reach_the_end_of_the_text_before_them(tmp_path, family):
    """Count, for every boundary, the tokens of the text up to it: with one space between parts, no token reaches across."""
    rows, tokenizer = some_rows(60, seed=4), tokenizer_of(family)
    samples, _ = samples_of(tmp_path, rows, family)
    for index, row in enumerate(rows):
        parts, opening = Wording().parts(row), len(opening_tokens(tokenizer))
        lengths = [opening + len(tokenizer(" ".join(parts[:count]), add_special_tokens=False, split_special_tokens=True)["input_ids"])
                   for count in range(1, len(parts) + 1)]
        assert lengths[-1] + 1 == len(samples.ids[samples.span(index)])
        edges = [int(samples.first(index, given) - samples.offsets[index]) for given in range(len(row.steps) + 1)]
        assert edges == lengths[:-1]


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_asked_with_the_tokens_that_it_was_taught_with(tmp_path, family, layout):
    rows, wording = some_rows(80, seed=2), Wording(layout)
    samples, _ = samples_of(tmp_path, rows, family, wording)
    prompts = prompt_tokens([row.question for row in rows], wording, tokenizer_of(family))
    assert [parts_of(samples, index)[PROMPT] for index in range(len(rows))] == prompts


def test_the_llama_family_opens_with_a_beginning_of_text_and_the_others_do_not():
    assert opening_tokens(tokenizer_of("llama")) == [tokenizer_of("llama").bos_token_id]
    assert opening_tokens(tokenizer_of("t5")) == opening_tokens(tokenizer_of("gpt2")) == []


def test_a_token_belongs_to_the_first_part_that_it_shows_a_character_of():
    parts = ["Q: a", "b c.", "d"]  # text "Q: a b c. d"
    assert steps_of_tokens(parts, np.array([0, 3, 4, 5, 6, 8, 9, 10, 11])).tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("template", "words"), [("answer_is", "Therefore, the answer is 7"), ("hash", "#### 7")])
def test_the_answer_sentence_is_as_the_template_says(template, words):
    row = Rationale("1", "Why?", ("Because.",), "7", "train", "")
    assert Wording("causal", template).parts(row) == ["Q: Why?\nA: Let's think step by step.", "Because.", words]
    assert Wording("seq2seq", template).parts(row) == ["Q: Why? A: Let's think step by step.", "Because.", words]


def test_tokens_to_be_learned_are_counted_from_the_first_step_that_is_not_given(tmp_path):
    rows = some_rows(40, seed=9)
    samples, _ = samples_of(tmp_path, rows)
    for index, row in enumerate(rows):
        steps = samples.steps[samples.span(index)]
        for given in range(len(row.steps) + 1):
            assert samples.active(index, given) == sum(step == ANSWER or step >= given for step in steps.tolist())
    everything = samples.active(np.arange(40), np.zeros(40, np.int64))
    assert everything.sum() == (samples.steps != PROMPT).sum()
    assert samples.longest == max(stop - start for start, stop in pairwise(samples.offsets.tolist()))


def test_samples_above_the_limit_of_tokens_are_left_out_and_counted(tmp_path):
    rows = some_rows(50)
    everything, _ = samples_of(tmp_path, rows)
    lengths = np.diff(everything.offsets)
    limit = int(np.sort(lengths)[30])
    samples, left = samples_of(tmp_path, rows, max_tokens=limit)
    fitting = [index for index in range(50) if lengths[index] <= limit]
    assert samples.rows == [rows[index] for index in fitting]
    assert left.too_long == 50 - len(fitting)
    assert samples.ids.tolist() == [token for index in fitting for token in everything.ids[everything.span(index)].tolist()]
    with pytest.raises(DataError, match=r"^no sample of at most 9 tokens in 50 training rows; raise data.max_tokens"):
        samples_of(tmp_path, rows, max_tokens=9)


def test_stored_samples_are_opened_and_the_key_follows_everything_that_decides_them(tmp_path, monkeypatch):
    rows = some_rows(20)
    first, _ = samples_of(tmp_path, rows)
    others = [samples_of(tmp_path, rows, "t5")[0], samples_of(tmp_path, rows, wording=Wording("seq2seq"))[0],
              samples_of(tmp_path, rows, wording=Wording("causal", "hash"))[0], samples_of(tmp_path, rows[1:])[0],
              samples_of(tmp_path, rows, max_tokens=9_999)[0]]
    assert len({first.key, *(other.key for other in others)}) == 6
    meta = json.loads((tmp_path / "samples" / first.key / "meta.json").read_text())
    assert meta["layout"] == "causal"
    monkeypatch.setattr("datamodules.samples._tokenise", lambda *words: pytest.fail("tokenised again"))
    again, _ = samples_of(tmp_path, rows)
    assert again.key == first.key
    assert all(np.array_equal(getattr(again, name), getattr(first, name)) for name in ("ids", "steps", "offsets", "counts"))


def letters_and(*merges):
    """A tokenizer of letters with tokens for some neighbours, spaces included."""
    letters = sorted({*"Q: Why?\nA Let's think step by step. Go! No Therefore, the answer is 7"})
    vocabulary = {token: number for number, token in enumerate([*letters, *("".join(pair) for pair in merges), "</s>"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, list(merges))), eos_token="</s>")


def test_a_tokenizer_whose_prompts_depend_on_what_follows_is_refused(tmp_path):
    row = Rationale("1", "Why?", ("No.",), "7", "train", "")
    with pytest.raises(DataError, match="the tokens of a prompt change with what follows it"):
        make_samples(tmp_path, [row], Wording(), letters_and((".", " "), (". ", "N")), 1000)


def test_a_sample_with_a_step_that_shares_its_only_token_is_left_out_and_counted(tmp_path):
    shared, apart = (Rationale("1", "Why?", ("No!", step, "No!"), "7", "train", "") for step in ("G", "Go"))
    samples, left = make_samples(tmp_path, [shared, apart], Wording(), letters_and(("!", " "), ("! ", "G")), 1000)
    assert (left.entangled, left.too_long) == (1, 0)
    assert samples.rows == [apart]
    assert samples.counts.tolist() == [3]


def test_a_slow_tokenizer_is_refused(tmp_path):
    class Slow:
        name_or_path, eos_token_id, bos_token_id = "slow", 1, None

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(DataError, match=r"data.tokenizer=slow: is a slow tokenizer"):
        make_samples(tmp_path, some_rows(2), Wording(), Slow(), 100)
