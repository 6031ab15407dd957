"""Vectors of questions from three sources, and clusters that are the same each time."""

import itertools
import logging
import warnings

import numpy as np
import pytest
import torch
from problem_samples import samples_in
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info, threadpool_limits
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

from datamodules.rows import DataError
from lightning_modules.kpod import clusters
from lightning_modules.kpod.clusters import cluster, glove_vectors, question_vectors, sentence_vectors, source_key, static_vectors
from lightning_modules.kpod.schedule import ScheduleSection


def unit(vector):
    return vector / np.linalg.norm(vector)


def same_beginning(lists):
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lists)))


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
def test_static_vectors_are_the_mean_embedding_of_the_question_without_what_all_prompts_share(tmp_path, layout):
    samples, _ = samples_in(tmp_path, layout)
    embedding = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    prompts = [samples.ids[samples.span(i)][samples.steps[samples.span(i)] == -1].tolist() for i in range(len(samples))]
    before, after = same_beginning(prompts), same_beginning([prompt[::-1] for prompt in prompts])
    assert min(before, after) > 0
    found = static_vectors(samples, embedding)
    for prompt, vector in zip(prompts, found, strict=True):
        words = prompt[before : len(prompt) - after]
        assert np.allclose(vector, unit(embedding[words].mean(0)), atol=1e-5)
    chosen = question_vectors(samples, ScheduleSection(), lambda: embedding)
    assert np.array_equal(chosen, found)


def test_a_single_sample_keeps_a_vector(tmp_path):
    samples, _ = samples_in(tmp_path, count=1)
    vectors = static_vectors(samples, np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1])


GLOVE = "the 1 0 0\napple 0 2 0\n. . 9 9 9\nruns 0 0 -1\n? 0 1 1\n"


def test_glove_vectors_are_means_over_lower_cased_words_and_missing_words_are_counted(tmp_path, caplog):
    (tmp_path / "glove.txt").write_text(GLOVE)
    with caplog.at_level(logging.INFO):
        found = glove_vectors(["The apple runs?", "Apple, Xylophone"], tmp_path / "glove.txt")
    assert np.allclose(found, [unit(np.array([1, 3, 0]) / 4), [0, 1, 0]])
    assert "2 of 6 words are not in glove.txt, 28.57 % of all" in caplog.text


def test_a_first_line_with_two_numbers_is_passed_over(tmp_path):
    (tmp_path / "with.txt").write_text("5 3\n" + GLOVE)
    (tmp_path / "without.txt").write_text(GLOVE)
    one, other = (glove_vectors(["The apple runs?"], tmp_path / name) for name in ("with.txt", "without.txt"))
    assert np.array_equal(one, other)


def test_questions_without_a_known_word_warn_and_stay_zero(tmp_path):
    (tmp_path / "glove.txt").write_text(GLOVE)
    with pytest.warns(UserWarning, match="1 of 2 questions have no word in glove.txt"):
        found = glove_vectors(["Xylophone", "the"], tmp_path / "glove.txt")
    assert found.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_a_file_that_has_no_word_vectors_is_refused_by_line(tmp_path):
    (tmp_path / "glove.txt").write_text("the 1 0 0\napple one two three\n")
    with pytest.raises(ValueError, match=r"module\.schedule\.glove: .*glove\.txt, line 2: is not a word and 3 numbers"):
        glove_vectors(["an apple"], tmp_path / "glove.txt")
    with pytest.raises(DataError, match=r"module\.schedule\.glove: .*nowhere\.txt: no such file"):
        glove_vectors(["an apple"], tmp_path / "nowhere.txt")


@pytest.fixture
def sentence_model(tmp_path):
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "apples", "pears", "does", "he", "eat", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=128)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_sentence_vectors_are_means_of_hidden_states_without_padding(tmp_path, sentence_model, monkeypatch):
    monkeypatch.setattr(clusters, "SENTENCES", 2)
    questions = ["how many apples does he eat ?", "pears ?", "how many pears ?"]
    found = sentence_vectors(questions, str(sentence_model))
    tokenizer, model = BertTokenizerFast.from_pretrained(sentence_model), AutoModel.from_pretrained(sentence_model).eval()
    for question, vector in zip(questions, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(question, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert np.allclose(vector, unit(alone), atol=1e-5)
    samples, _ = samples_in(tmp_path, count=3)
    assert question_vectors(samples, ScheduleSection(sentences=str(sentence_model)), pytest.fail).shape == (3, 16)


def test_a_sentence_model_that_is_not_there_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^module\.schedule\.sentences: .*nothing cannot be loaded .* name on the Hub$"):
        sentence_vectors(["why?"], str(tmp_path / "nothing"))


def kinds(n, seed=0):
    """Draw unit vectors around five directions."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 5, n)
    vectors = np.eye(5, 32)[kind] + 0.1 * random.normal(size=(n, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), kind


@pytest.mark.parametrize("large", [100, 1000])
def test_questions_of_a_kind_get_one_cluster_with_all_and_with_samples_of_them(monkeypatch, large):
    monkeypatch.setattr(clusters, "LARGE", large)
    vectors, kind = kinds(600)
    found = cluster(vectors, 5, seed=0)
    assert found.dtype == np.uint8
    assert adjusted_rand_score(kind, found) > 0.99
    assert np.array_equal(cluster(vectors, 5, seed=0), found)


def test_sums_do_not_depend_on_the_number_of_threads_because_there_is_one(monkeypatch):
    used, fit = [], KMeans.fit

    def watched(self, vectors):
        used.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, vectors)

    monkeypatch.setattr(KMeans, "fit", watched)
    with threadpool_limits(2):
        cluster(kinds(50)[0], 5, 0)
    assert set(used) == {1}


def test_fewer_different_questions_than_clusters_warn():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    with pytest.warns(UserWarning, match="2 different vectors, fewer than 5"):
        found = cluster(vectors, 5, 0)
    assert len(set(found[:10])) == len(set(found[10:])) == 1
    assert found[0] != found[10]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cluster(vectors, 2, 0)


def test_the_key_of_a_glove_file_is_its_content(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE)
    section = ScheduleSection(glove=str(path))
    first = source_key(section)
    assert source_key(section) == first
    path.write_text(GLOVE + "more 1 2 3\n")
    assert source_key(section) != first
    path.unlink()
    with pytest.raises(DataError, match=r"module\.schedule\.glove: .*no such file"):
        source_key(section)


def test_a_sentence_model_that_is_missing_is_told_before_anything_is_made(tmp_path, sentence_model):
    assert source_key(ScheduleSection()) == source_key(ScheduleSection(sentences=str(sentence_model))) == ""
    with pytest.raises(ValueError, match=r"module\.schedule\.sentences: .* cannot be loaded"):
        source_key(ScheduleSection(sentences=str(tmp_path / "nothing")))
