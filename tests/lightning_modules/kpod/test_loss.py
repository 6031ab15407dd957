"""The loss of distillation: plain likelihood where nothing is weighted or masked, and the same gradient however a batch is shared out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from students import EOS, PAD, student, tokens

from lightning_modules.kpod.loss import distillation_loss, token_nll

WORKER = Path(__file__).with_name("loss_worker.py")


def shifted(labels):
    """Labels as they come from the data: at each place that of the next token."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)


def logits_and_labels(kind):
    """Logits of a student for a batch whose second row has less to learn, its aligned labels, and the loss that transformers computes."""
    model, text = student(kind), tokens(2, 12)
    labels = text.clone()
    labels[0, :4], labels[1, :7], labels[1, -2:] = -100, -100, -100
    if kind == "t5":
        start = torch.cat([torch.full((2, 1), PAD), text[:, :-1]], 1)
        found = model(input_ids=tokens(2, 6, seed=1), decoder_input_ids=start, labels=labels)
        return found.logits, labels, found.loss
    found = model(input_ids=text, labels=labels)
    return found.logits, shifted(labels), found.loss


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_without_weights_and_given_steps_it_is_the_loss_of_transformers(kind):
    logits, labels, theirs = logits_and_labels(kind)
    active = (labels != -100).sum()
    loss, sums = distillation_loss(logits, labels, torch.ones_like(labels, dtype=torch.float32), active, 1)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert sums.tokens == sums.weights == active
    assert sums.nll.item() == pytest.approx(sums.weighted.item())
    assert sums.nll.item() == pytest.approx(theirs.item() * active.item(), rel=1e-6)


def test_weights_multiply_each_tokens_likelihood_and_the_divisor_is_the_callers():
    logits, labels, _ = logits_and_labels("llama")
    weights = torch.rand(labels.shape)
    likelihoods = torch.log_softmax(logits.detach().double(), -1)
    by_hand = -sum(float(weights[b, t] * likelihoods[b, t, labels[b, t]]) for b in range(2) for t in range(12) if labels[b, t] >= 0)
    loss, sums = distillation_loss(logits, labels, weights, torch.tensor(40.0), 6)
    assert loss.item() == pytest.approx(6 * by_hand / 40, rel=1e-5)
    assert sums.weights.item() == pytest.approx(weights[labels >= 0].sum().item())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_nothing_is_learned_from_the_labels_of_given_steps(kind):
    logits, labels, _ = logits_and_labels(kind)
    gradient, = torch.autograd.grad(distillation_loss(logits, labels, torch.ones(labels.shape), 10, 1)[0], logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, labels != -100)


def test_a_chunked_softmax_gives_the_same_and_keeps_no_second_copy_of_the_logits():
    logits, labels = torch.randn(3, 50, 64, requires_grad=True), tokens(3, 50)
    labels[:, :9] = -100
    (whole, copies), (pieces, fewer) = kept_by(lambda: token_nll(logits, labels)), kept_by(lambda: token_nll(logits, labels, 7 * 64))
    assert torch.equal(whole, pieces)
    assert torch.equal(*(torch.autograd.grad(nll.square().sum(), logits)[0] for nll in (whole, pieces)))
    storage = logits.untyped_storage().data_ptr()
    copied, less = (sum(t.numel() for t in kept if t.untyped_storage().data_ptr() != storage) for kept in (copies, fewer))
    assert copied >= logits.numel()
    assert less <= 8 * labels.numel() < logits.numel()


def kept_by(compute):
    """What `compute` returns, and the tensors that it keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        return compute(), kept


def test_the_softmax_is_in_float32_whatever_the_logits_are_in():
    torch.manual_seed(0)
    logits, labels = 4 * torch.randn(2, 8, 100), tokens(2, 8)
    exact = torch.nn.functional.cross_entropy(logits.bfloat16().double().flatten(0, 1), labels.flatten(), reduction="none")
    assert token_nll(logits.bfloat16(), labels).flatten().double() == pytest.approx(exact, rel=1e-5)


def test_steps_given_in_t5s_decoder_are_a_masked_full_sequence_and_not_a_decoder_full_of_padding():
    """Labels of -100 without decoder inputs make transformers feed padding in place of the steps, which is another distribution."""
    model, question, target = student("t5").eval(), tokens(1, 6, seed=1), tokens(1, 10)
    target[0, -1] = EOS
    given = 4
    labels = target.clone()
    labels[:, :given] = -100
    start = torch.cat([torch.full((1, 1), PAD), target[:, :-1]], 1)
    ours = token_nll(model(input_ids=question, decoder_input_ids=start).logits, labels).sum()
    everything = token_nll(model(input_ids=question, labels=target).logits, target)
    trap = model(input_ids=question, labels=labels).loss * (10 - given)
    assert ours.item() == pytest.approx(everything[:, given:].sum().item(), rel=1e-6)
    assert abs(trap.item() - ours.item()) > 1e-2


def test_gradients_do_not_depend_on_how_many_processes_share_a_batch_or_accumulate_it():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, str(WORKER)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ours"] <= 1e-6
    assert report["mean of each process and batch"] > 1e-2  # what the test would not notice is noticed
