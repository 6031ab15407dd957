"""Whether the weights find what matters: twelve tokens of which two digits decide the answer, generator and predictor trained together."""

import torch

from lightning_modules.kpod.weighting.masks import MaskSchedule, random_mask, relaxed_mask
from lightning_modules.kpod.weighting.network import WeightingNetwork
from lightning_modules.kpod.weighting.prefixes import whole

DIGITS, WORDS, LENGTH, BATCH = 8, 12, 12, 16  # two kinds of digits, 1..8 and 9..16; words 17..28; 0 is the prompt
STEPS = torch.tensor([-1, *[0] * LENGTH])


def toy(samples, generator):
    """Draw a prompt and twelve tokens; the answer is the digit of the first kind, then that of the second."""
    ids = torch.randint(1 + 2 * DIGITS, 1 + 2 * DIGITS + WORDS, (samples, 1 + LENGTH), generator=generator)
    ids[:, 0] = 0
    places = torch.rand(samples, LENGTH, generator=generator).argsort(-1)[:, :2] + 1
    keys = torch.randint(DIGITS, (samples, 2), generator=generator) + torch.tensor([1, 1 + DIGITS])
    ids.scatter_(1, places, keys)
    return {"input_ids": ids, "steps": STEPS.expand(samples, -1), "labels": keys, "index": torch.arange(samples)}


def trained(steps=300, alpha=0.5, **options):
    """Train on fresh toys; return the mean weights of keys and of noise."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    net = WeightingNetwork(torch.randn(1 + 2 * DIGITS + WORDS, 32), "tiny", 8, 64, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = MaskSchedule(alpha, 0.4, 0.1, 1.0, 0.5)
    for step in range(steps):
        progress, batch = step / steps, toy(BATCH, generator)
        logits, embedded = net.logits(batch)
        mask = random_mask(logits, 0.3) if schedule.is_random(progress) else relaxed_mask(logits, schedule.temperature(progress))
        net.loss(batch, embedded, mask, whole(batch["steps"]), schedule.price(progress)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    batch = toy(200, generator)
    with torch.no_grad():
        weights, embedded = net.weights(batch), net.logits(batch)[1]
        loss = net.answer_nll(batch, embedded, (weights > 0.5).float(), whole(batch["steps"])).mean().item()
    key = (batch["input_ids"] >= 1) & (batch["input_ids"] <= 2 * DIGITS)
    return weights[key].mean().item(), weights[~key & (batch["steps"] >= 0)].mean().item(), loss


def test_soft_masks_on_embeddings_keep_the_digits_and_drop_the_noise():
    key, noise, loss = trained()
    assert key > 0.9
    assert noise < 0.2
    assert loss < 0.5, "the answer is told by what is kept"


def test_masks_behind_the_attention_do_not_find_the_digits():
    key, noise, _ = trained(in_context=True)
    assert key < 0.9 or noise > 0.2


def test_a_price_summed_over_tokens_and_batch_against_a_mean_answer_loss_would_mask_everything():
    key, noise, _ = trained(alpha=0.5 * LENGTH * BATCH)
    assert key < 0.2
    assert noise < 0.2
