"""Difficulties from one forward: against loops over steps, one forward a step, and themselves after an interruption."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from problem_samples import logits_of, samples_in, student

from lightning_modules.kpod.difficulty import nll_of_all, segment_softmax, step_difficulties


def test_the_softmax_sums_to_one_in_each_segment_and_is_that_of_torch():
    values, segments = np.random.default_rng(0).normal(0, 3, 50), np.repeat([0, 1, 4, 5, 9], [1, 20, 3, 25, 1])
    shares = segment_softmax(values, segments)
    for segment in np.unique(segments):
        here = segments == segment
        assert shares[here].sum() == pytest.approx(1, abs=1e-12)
        assert np.allclose(shares[here], torch.softmax(torch.tensor(values[here]), 0).numpy(), atol=1e-14)


def test_the_softmax_of_large_numbers_does_not_overflow():
    assert segment_softmax(np.array([1e4, 1e4 + 1, -1e4]), np.array([0, 0, 1])) == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 1])


def by_loops(nll, weights, samples):
    """Write Eq 8 as it stands, step by step."""
    found = []
    for i in range(len(samples)):
        steps, loss, w = (flat[samples.span(i)] for flat in (samples.steps, nll, weights))
        for k in range(samples.counts[i]):
            powers = np.exp(w[steps == k].astype(np.float64))
            found.append((powers / powers.sum() * loss[steps == k]).sum())
    return np.array(found)


def test_difficulties_are_those_of_equation_8(tmp_path):
    samples, _ = samples_in(tmp_path)
    random = np.random.default_rng(1)
    nll, weights = random.gamma(2, 1, len(samples.ids)).astype(np.float32), random.uniform(0, 1, len(samples.ids)).astype(np.float32)
    found = step_difficulties(nll, samples, weights)
    assert len(found) == samples.counts.sum()
    assert np.allclose(found, by_loops(nll, weights, samples), rtol=1e-12)


def test_equal_weights_give_the_mean_of_each_step_as_no_weights_do(tmp_path):
    samples, _ = samples_in(tmp_path)
    nll = np.random.default_rng(2).gamma(2, 1, len(samples.ids)).astype(np.float32)
    means = [nll[samples.span(i)][samples.steps[samples.span(i)] == k].mean(dtype=np.float64)
             for i in range(len(samples)) for k in range(samples.counts[i])]
    assert np.allclose(step_difficulties(nll, samples, np.full(len(nll), 0.7, np.float32)), means, rtol=1e-12)
    assert np.allclose(step_difficulties(nll, samples), means, rtol=1e-12)


def one_forward_a_step(model, samples, i, layout):
    """Score each step with only what comes before it as input, one forward each; then the answer."""
    ids, steps = (torch.tensor(flat[samples.span(i)].astype(np.int64)) for flat in (samples.ids, samples.steps))
    prompt, found = ids[steps == -1], []
    for part in [*range(samples.counts[i]), -2]:
        places = torch.nonzero(steps == part).flatten()
        before, now = ids[: places[0]], ids[places]
        if layout == "causal":
            logits = model(torch.cat([before, now])[None]).logits[0, places - 1]
        else:
            decoder = torch.cat([torch.tensor([1]), before[len(prompt) :], now[:-1]])
            encoder = torch.cat([prompt, torch.tensor([0])])
            logits = model(input_ids=encoder[None], decoder_input_ids=decoder[None]).logits[0, -len(now) :]
        found.append(-torch.log_softmax(logits.double(), -1)[torch.arange(len(now)), now])
    return torch.cat(found).numpy()


@pytest.mark.parametrize("layout", ["causal", "seq2seq"])
def test_one_forward_gives_what_one_forward_a_step_gives(tmp_path, layout):
    samples, batches = samples_in(tmp_path, layout)
    model = student(layout)
    found = nll_of_all(samples, batches, logits_of(model), tmp_path / "work", rows=16)
    assert found.dtype == np.float32
    with torch.no_grad():
        for i in range(len(samples)):
            span = samples.span(i)
            first = samples.first(i, 0)
            assert not found[span.start : first].any()
            assert np.abs(found[first : span.stop] - one_forward_a_step(model, samples, i, layout)).max() < 1e-5


class Interrupted(Exception):
    pass


def test_an_interrupted_walk_goes_on_to_the_same_bits_without_repeating_finished_parts(tmp_path):
    samples, batches = samples_in(tmp_path)
    forward, calls = logits_of(student()), []

    def counted(stop):
        def call(batch):
            if len(calls) == stop:
                raise Interrupted
            calls.append(1)
            return forward(batch)
        return call

    whole = nll_of_all(samples, batches, counted(None), tmp_path / "whole", rows=16)
    assert len(calls) == 2 + 2 + 1  # 40 samples in parts of 16, in batches of 8
    calls.clear()
    with pytest.raises(Interrupted):
        nll_of_all(samples, batches, counted(3), tmp_path / "work", rows=16)
    calls.clear()
    assert np.array_equal(nll_of_all(samples, batches, counted(None), tmp_path / "work", rows=16), whole)
    assert len(calls) == 3
    assert np.array_equal(nll_of_all(samples, batches, counted(3), tmp_path / "work", rows=16), whole)


def test_a_part_that_was_cut_off_on_the_disk_is_made_again(tmp_path):
    samples, batches = samples_in(tmp_path)
    forward = logits_of(student())
    whole = nll_of_all(samples, batches, forward, tmp_path / "work", rows=16)
    one, other, _ = sorted((tmp_path / "work").glob("*.npy"))
    one.write_bytes(one.read_bytes()[:-40])
    other.write_bytes(b"")
    assert np.array_equal(nll_of_all(samples, batches, forward, tmp_path / "work", rows=16), whole)
    assert not list((tmp_path / "work").glob("*.tmp"))


def test_a_part_whose_writing_is_cut_off_is_not_there(tmp_path, monkeypatch):
    samples, batches = samples_in(tmp_path)

    def half(stream, values):
        stream.write(values.tobytes()[:100])
        raise Interrupted

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(Interrupted):
        nll_of_all(samples, batches, logits_of(student()), tmp_path / "work", rows=16)
    assert not list((tmp_path / "work").glob("*.npy"))


def one_of_three(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    samples, batches = samples_in(folder)
    forward, calls = logits_of(student()), []

    def together(batch):
        """Stand for a student spread over processes: every forward needs all of them."""
        dist.barrier()
        calls.append(batch["index"].tolist())
        return forward(batch)

    found = nll_of_all(samples, lambda indices: batches(indices, 2), together, folder / "work", rows=17)  # shares of 6, 6, 5; 2, 2, 2
    by_rank = nll_of_all(samples, lambda indices: batches(indices, 2), lambda batch: (rank + 1) * forward(batch), folder / "other", rows=17)
    torch.save({"found": found, "calls": calls, "by_rank": by_rank}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_three_processes_find_the_same_as_one_and_call_the_student_equally_often(tmp_path):
    samples, batches = samples_in(tmp_path)
    torch.multiprocessing.start_processes(one_of_three, (tmp_path,), nprocs=3, start_method="fork")
    states = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(3)]
    alone = nll_of_all(samples, batches, logits_of(student()), tmp_path / "alone")
    for state in states:
        assert np.array_equal(state["found"], states[0]["found"])
        assert np.allclose(state["found"], alone, atol=1e-5)
        assert len(state["calls"]) == len(states[0]["calls"]) == 3 + 3 + 1
    counts = np.bincount([i for state in states for call in state["calls"] for i in call], minlength=len(samples))
    assert counts.min() == 1
    assert counts.sum() - len(samples) == 2  # one row fills up each of the two full parts
    filling = samples.span(int(np.argmin(np.diff(samples.offsets))))  # fills up the third process's share
    assert np.array_equal(states[0]["by_rank"][filling], states[0]["found"][filling])
