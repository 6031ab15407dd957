"""Masks on rationale tokens, the beginnings that answers are predicted from, and the loss of KPOD's Eq 7."""

import math

import pytest
import torch
from torch.nn.functional import pad

from lightning_modules.kpod.weighting.masks import MaskSchedule, TokenWeigher, masked, mean_over, random_mask, relaxed_mask
from lightning_modules.kpod.weighting.network import WeightingNetwork
from lightning_modules.kpod.weighting.prefixes import Prefixes, every_step_end, nothing, some_lengths, some_step_ends, whole

VOCABULARY, WIDTH = 23, 12
# two tokens of a prompt at most, then steps of the lengths (2, 1, 3) and (1, 2)
STEPS = torch.tensor([[-1, -1, 0, 0, 1, 2, 2, 2], [-2, -1, 0, 1, 1, -2, -2, -2]])


def network(seed=0, **options):
    torch.manual_seed(seed)
    return WeightingNetwork(torch.randn(VOCABULARY, WIDTH), "tiny", 8, 16, **options)


def batch(steps=STEPS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, steps.shape, generator=generator)
    labels = torch.randint(VOCABULARY, (len(steps), 3), generator=generator)
    labels[1:, 2:] = -100
    return {"input_ids": ids, "steps": steps, "labels": labels, "index": torch.arange(len(steps))}


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.88])
def test_a_token_is_kept_as_often_as_its_weight_says_at_every_temperature(weight, temperature):
    torch.manual_seed(0)
    mask = relaxed_mask(torch.full((40_000,), math.log(weight / (1 - weight))), temperature)
    assert (mask > 0.5).float().mean().item() == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / 40_000))
    assert (mask >= 0).all()
    assert (mask <= 1).all()


def test_hard_masks_are_zeros_and_ones_with_the_gradient_of_the_soft_ones():
    gradients = []
    for hard in (False, True):
        torch.manual_seed(3)
        logits = torch.linspace(-2, 2, 50, requires_grad=True)
        mask = relaxed_mask(logits, 0.7, hard)
        (mask * torch.arange(50)).sum().backward()
        gradients.append(logits.grad)
    assert set(mask.detach().tolist()) <= {0.0, 1.0}
    assert torch.equal(*gradients)
    assert (gradients[0][1:] > 0).all()


def test_random_masks_hide_their_share_whatever_the_logits_are():
    torch.manual_seed(0)
    assert random_mask(torch.full((20_000,), -9.0), 0.3).mean().item() == pytest.approx(0.7, abs=0.013)


def test_a_mask_mixes_a_rationale_token_with_the_masked_token_and_leaves_the_prompt_alone():
    embedded, instead = torch.randn(2, 8, 4), torch.randn(4)
    mask = torch.rand(2, 8)
    mixed = masked(embedded, mask, STEPS >= 0, instead)
    for row in range(2):
        for place in range(8):
            m = mask[row, place] if STEPS[row, place] >= 0 else 1.0
            assert torch.allclose(mixed[row, place], m * embedded[row, place] + (1 - m) * instead)


def test_the_price_rises_after_the_random_masks_and_the_temperature_falls_all_along():
    schedule = MaskSchedule(alpha=0.5, warmup=0.1, ramp=0.1, tau_start=1.0, tau_end=0.5)
    assert [schedule.is_random(p) for p in (0, 0.099, 0.1, 0.9)] == [True, True, False, False]
    assert [schedule.price(p) for p in (0.05, 0.1, 0.15, 0.2, 0.7)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    assert [schedule.temperature(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.75, 0.5])
    assert MaskSchedule(0.5, 0, 0, 1, 1).price(0) == 0.5


def pairs(prefixes):
    return list(zip(prefixes.sample.tolist(), prefixes.tokens.tolist()))


def test_prefixes_end_where_a_step_ends():
    assert pairs(every_step_end(STEPS)) == [(0, 2), (0, 3), (0, 6), (1, 1), (1, 3)]
    assert pairs(whole(STEPS)) == [(0, 6), (1, 3)]
    assert pairs(nothing(STEPS)) == [(0, 0), (1, 0)]
    torch.manual_seed(0)
    drawn = [pairs(some_step_ends(STEPS, 2)) for _ in range(60)]
    assert all(found[0] == (0, 6) and found[3] == (1, 3) and len(found) == 6 for found in drawn)
    assert {pair for found in drawn for pair in found} == {(0, 6), (0, 2), (0, 3), (1, 3), (1, 1)}
    lengths = [pairs(some_lengths(STEPS, 2)) for _ in range(200)]
    assert {tokens for found in lengths for sample, tokens in found if sample == 0} == {1, 2, 3, 4, 5, 6}
    assert all(found[0] == (0, 6) for found in lengths)


def test_of_a_single_step_every_prefix_is_the_whole():
    assert pairs(some_step_ends(torch.tensor([[-1, 0, 0, -2]]), 3)) == [(0, 2)] * 4


def test_a_prefix_covers_the_prompt_and_the_first_tokens_of_the_rationale():
    cover = Prefixes(torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])).cover(STEPS)
    assert cover.int().tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]]


def test_the_loss_is_the_mean_over_prefixes_and_the_price_of_the_mean_mask_computed_one_by_one():
    net, data = network(), batch()
    mask = torch.rand(2, 8)
    _, embedded = net.logits(data)
    found = net.loss(data, embedded, mask, every_step_end(STEPS), 0.5)
    expected = []
    for row, ends in ((0, (2, 3, 6)), (1, (1, 3))):
        alone = {name: value[row : row + 1] for name, value in data.items()}
        answers = [net.answer_nll(alone, embedded[row : row + 1], mask[row : row + 1], Prefixes(torch.tensor([0]), torch.tensor([end])))
                   for end in ends]
        expected.append(sum(answers).item() / len(ends) + 0.5 * mask[row][STEPS[row] >= 0].mean().item())
    assert found.total.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    sums = net.loss(data, embedded, mask, every_step_end(STEPS), 0.5, by_length=True)
    assert sums.total.item() == pytest.approx((expected[0] * 6 + expected[1] * 3) / 2, rel=1e-5)


@pytest.mark.parametrize("by_length", [False, True])
def test_neither_part_of_the_loss_grows_with_the_batch(by_length):
    net, data = network(), batch()
    results = []
    for copies in (1, 4):
        many = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in data.items()}
        logits, embedded = net.logits(many)
        loss = net.loss(many, embedded, logits.sigmoid(), whole(many["steps"]), 0.5, by_length)
        gradients = torch.autograd.grad(loss.total, [*net.weigher.parameters()])
        results.append((loss, gradients))
    (one, first), (four, second) = results
    for part in ("total", "answer", "ratio"):
        assert torch.allclose(getattr(one, part), getattr(four, part), rtol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(first, second))


def test_padding_never_counts():
    net, data = network(), batch()
    logits, embedded = net.logits(data)
    mask = torch.rand(2, 8)
    loss = net.loss(data, embedded, mask, whole(STEPS), 0.5).total
    other = torch.where(STEPS >= 0, mask, 77.0)
    assert torch.equal(net.loss(data, embedded, other, whole(STEPS), 0.5).total, loss)
    mask.requires_grad_()
    (gradient,) = torch.autograd.grad(net.loss(data, embedded, mask, whole(STEPS), 0.5).total, mask)
    assert (gradient[STEPS < 0] == 0).all()
    assert (gradient[STEPS >= 0] != 0).all()
    wider = {"input_ids": pad(data["input_ids"], (3, 5), value=7), "labels": pad(data["labels"], (0, 2), value=-100),
             "steps": pad(STEPS, (3, 5), value=-2), "index": data["index"]}
    more, embedded = net.logits(wider)
    assert torch.allclose(more[:, 3:-5][STEPS >= 0], logits[STEPS >= 0], atol=1e-5)
    assert torch.allclose(net.loss(wider, embedded, pad(other, (3, 5)), whole(wider["steps"]), 0.5).total, loss, rtol=1e-5)


def test_weights_come_from_the_rationale_alone():
    net, data = network(), batch()
    before = net.weights(data)
    changed = {**data, "input_ids": torch.where(STEPS == -1, (data["input_ids"] + 1) % VOCABULARY, data["input_ids"])}
    assert torch.equal(net.weights(changed)[STEPS >= 0], before[STEPS >= 0])
    assert before[STEPS >= 0].mean().item() == pytest.approx(0.88, abs=0.06)


def test_the_answers_loss_reaches_the_weights_through_embeddings_but_not_through_replaced_token_ids():
    net, data = network(), batch()
    logits, embedded = net.logits(data)
    torch.manual_seed(5)
    mask = relaxed_mask(logits, 1.0)
    generator = [*net.weigher.parameters()]
    ours = torch.autograd.grad(net.answer_nll(data, embedded, mask, whole(STEPS)).mean(), generator, retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in ours[-4:])
    replaced = torch.where((mask > 0.5) | (STEPS < 0), data["input_ids"], VOCABULARY - 1)
    trap = net.answer_nll(data, net.predictor.embed(net.embedding, replaced), torch.ones_like(mask), whole(STEPS)).mean()
    assert all(gradient is None for gradient in torch.autograd.grad(trap, generator, allow_unused=True))


def test_behind_the_attention_a_masked_token_still_shows_in_its_neighbours():
    for in_context in (False, True):
        net, data = network(in_context=in_context), batch()
        changed = {**data, "input_ids": data["input_ids"].clone()}
        changed["input_ids"][0, 5] = (changed["input_ids"][0, 5] + 1) % VOCABULARY
        mask = torch.ones(2, 8)
        mask[0, 5] = 0
        losses = [net.answer_nll(some, net.logits(some)[1], mask, whole(STEPS))[0] for some in (data, changed)]
        assert torch.equal(*losses) is not in_context


def test_what_a_masked_token_becomes_is_learned_or_zero():
    learned, zero = network(), network(learned=False)
    mean = learned.predictor.bridge(learned.embedding).mean(0)
    assert torch.allclose(learned.masked_token, mean)
    assert learned.masked_token.requires_grad
    assert not zero.masked_token.any()
    assert not zero.masked_token.requires_grad


def test_the_generators_attention_is_one_layer_of_attention_over_the_rationale():
    torch.manual_seed(0)
    weigher = TokenWeigher(16, 4, 8)
    embedded, rationale = torch.randn(1, 5, 16), torch.tensor([[True, True, True, False, False]])
    logits, _ = weigher(embedded, rationale)
    normed = weigher.before(embedded[0, :3])
    query, key, value = (normed @ weigher.attention.in_proj_weight.T + weigher.attention.in_proj_bias).split(16, -1)
    heads = [torch.softmax(query[:, h : h + 4] @ key[:, h : h + 4].T / 2, -1) @ value[:, h : h + 4] for h in range(0, 16, 4)]
    context = embedded[0, :3] + weigher.attention.out_proj(torch.cat(heads, -1))
    assert torch.allclose(weigher.score(weigher.after(context)).squeeze(-1), logits[0, :3], atol=1e-5)


def test_means_are_over_the_chosen_tokens_of_a_row():
    assert mean_over(torch.tensor([[1.0, 2, 9], [4, 9, 9]]), torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist() == [1.5, 4.0]
