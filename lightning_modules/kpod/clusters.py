"""Clusters of similar questions, C_k of Eq 12: k-means on one vector a question, so that a stage can take some of every kind.

A vector is the mean of the question's word vectors. The paper's are GloVe's, a file that the user has to have; the student's own input
embeddings are static word vectors as well, and always there. A sentence-transformers model is the third way.
"""

import hashlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from transformers import AutoConfig, AutoModel, AutoTokenizer

from datamodules.rows import DataError
from datamodules.samples import PROMPT, Samples
from datamodules.text import open_file
from lightning_modules.kpod.schedule import ScheduleSection

log = logging.getLogger(__name__)

LARGE = 20_000  # questions above which k-means looks at samples of them
STARTS = 10  # of k-means, of which the best is kept
SENTENCES = 64  # questions that the sentence model reads at a time
_WORD = re.compile(r"\w+|[^\w\s]")


def question_vectors(samples: Samples, section: ScheduleSection, embedding: Callable[[], np.ndarray]) -> np.ndarray:
    """Return a vector of length 1 for each question, float32 (N, D), in the way that the section chooses.

    `embedding` gives the student's input embeddings (V, H) and is called only where they are needed. Raises ValueError for a
    file or a model that cannot be read.
    """
    if section.glove:
        return glove_vectors([row.question for row in samples.rows], Path(section.glove).expanduser())
    if section.sentences:
        return sentence_vectors([row.question for row in samples.rows], section.sentences)
    return static_vectors(samples, embedding())


def source_key(section: ScheduleSection) -> str:
    """Hash the content of a GloVe file, which decides the vectors beside its name; empty for the other sources.

    Raises ValueError for a file or a model that is not there, before anything is made with it.
    """
    if section.glove:
        with _open_glove(Path(section.glove).expanduser()) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:20]
    if section.sentences:
        _loaded(AutoConfig, section.sentences)
    return ""


def static_vectors(samples: Samples, embedding: np.ndarray) -> np.ndarray:
    """Return the mean embedding of the tokens of each question, of length 1, float32 (N, H).

    Tokens with which all prompts begin or end are the template's, and left out.
    """
    begins, ends = samples.offsets[:-1], samples.first(np.arange(len(samples)), 0)
    before, after = _template(samples.ids, begins, ends)
    places = np.arange(len(samples.ids))
    of_prompt = samples.steps == PROMPT
    own = np.repeat(begins + before, np.diff(samples.offsets)) <= places
    own &= places < np.repeat(ends - after, np.diff(samples.offsets))
    counts = ends - begins - before - after
    words = csr_matrix((np.ones(int(counts.sum()), np.float32), samples.ids[own & of_prompt], np.cumsum([0, *counts])),
                       shape=(len(samples), len(embedding)))
    return _unit(np.asarray(words @ embedding.astype(np.float32)))


def _template(ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """Count the tokens with which all prompts begin, and with which all end; at least one token of each prompt is neither."""
    spare = int((ends - begins).min(initial=1 << 30)) - 1
    before = next((n for n in range(spare) if len(set(ids[begins + n].tolist())) > 1), 0)
    after = next((n for n in range(spare - before) if len(set(ids[ends - 1 - n].tolist())) > 1), 0)
    return before, after


def glove_vectors(questions: Sequence[str], path: Path) -> np.ndarray:
    """Return the mean GloVe vector of the lower-cased words of each question, of length 1, float32 (N, D).

    The file has a word and its D numbers on each line; a first line with two numbers, as other tools write it, is passed over. Words that
    are not in the file are left out.
    """
    texts = [_WORD.findall(question.lower()) for question in questions]
    counts = Counter(word for text in texts for word in text)
    known = _read_glove(path, counts.keys())
    missing = [word for word in counts if word not in known]
    missing = [word for word in counts if word not in known]
    log.info("module.schedule.glove: %d of %d words are not in %s, %.2f %% of all that the questions say", len(missing), len(counts),
             path.name, 100 * sum(counts[word] for word in missing) / max(1, counts.total()))
    empty = sum(not any(word in known for word in text) for text in texts)
    if empty:
        warnings.warn(f"module.schedule.glove: {empty} of {len(texts)} questions have no word in {path.name}; their vector "
                      "is zero", stacklevel=2)
    sums = [np.sum([known[word] for word in text if word in known], axis=0, dtype=np.float64) for text in texts]
    width = max(np.size(total) for total in sums)
    return _unit(np.stack([np.broadcast_to(total, width) for total in sums]).astype(np.float32))


def _read_glove(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Read the vectors of wanted words; a word may have spaces in it, so the numbers are counted from the end."""
    found: dict[str, np.ndarray] = {}
    width = 0
    with _open_glove(path) as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.decode(errors="replace").rstrip().split(" ")
            if number == 1 and len(fields) == 2:
                width = int(fields[1]) if fields[1].isdigit() else 0
                continue
            width = width or len(fields) - 1
            word = " ".join(fields[:-width])
            if word in wanted:
                found[word] = _numbers(fields[-width:], width, f"{path}, line {number}")
    return found


def _open_glove(path: Path) -> BufferedReader:
    return open_file(path, DataError(f"module.schedule.glove: {path}: no such file; give the text file of word vectors"))


def _numbers(fields: list[str], width: int, where: str) -> np.ndarray:
    try:
        return np.array(fields, np.float32).reshape(width)
    except ValueError:
        raise ValueError(f"module.schedule.glove: {where}: is not a word and {width} numbers; give the text file of word vectors") from None


def sentence_vectors(questions: Sequence[str], name: str) -> np.ndarray:
    """Return the mean of the last hidden states of each question's tokens, of length 1, float32 (N, D)."""
    tokenizer, model = _loaded(AutoTokenizer, name), _loaded(AutoModel, name).eval()
    order = np.argsort([len(question) for question in questions], kind="stable")
    found = np.empty((len(questions), model.config.hidden_size), np.float32)
    for begin in range(0, len(order), SENTENCES):
        part = order[begin : begin + SENTENCES]
        batch = tokenizer([questions[i] for i in part], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**batch).last_hidden_state.float()  # (B, T, D)
        mask = batch["attention_mask"].unsqueeze(-1)
        found[part] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return _unit(found)


def _loaded(kind: Any, name: str) -> Any:
    folder = Path(name).expanduser()
    try:
        return kind.from_pretrained(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"module.schedule.sentences: {name} cannot be loaded ({reason}); give a model's folder, "
                         "or its name on the Hub") from error


def cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each vector, uint8 (N,); the same for the same arguments, whatever the number of threads.

    Warns where there are fewer different vectors than clusters.
    """
    different = len({vector.tobytes() for vector in vectors})
    if different < count:
        warnings.warn(f"module.schedule.clusters: the questions have {different} different vectors, fewer than {count}",
                      stacklevel=2)
    kind = MiniBatchKMeans if len(vectors) > LARGE else KMeans
    with threadpool_limits(1):  # sums of several threads depend on their number
        return kind(min(count, different), n_init=STARTS, random_state=seed).fit(vectors).labels_.astype(np.uint8)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale each row to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
