"""Prompts: nothing at first, near what they change, far from each other, and learnt while all else is held still."""

import pytest
import torch

from lightning_modules.constant import constant
from lightning_modules.freekd import prompt
from lightning_modules.freekd.losses import log_probabilities
from lightning_modules.freekd.networks import KINDS, NetworkConfig, Shifted, make_network
from lightning_modules.freekd.prompt import FeaturePrompt, PromptSection


@pytest.fixture
def features():
    torch.manual_seed(0)
    dense = torch.randn(30, 12)
    return dense * (torch.rand(30, 12) < 0.3)


def test_prompts_at_zero_leave_the_features_as_they_are_to_the_last_bit(features):
    fresh = FeaturePrompt(12, 5)
    assert torch.equal(fresh(features).dense(), features)
    assert torch.equal(fresh(features.to_sparse_csr()).dense(), features)


def test_a_prompt_adds_the_tokens_in_the_shares_that_a_node_asks_for(features):
    own = FeaturePrompt(12, 3)
    torch.nn.init.normal_(own.tokens)
    changed = own(features).dense()
    for node in range(30):
        shares = torch.stack([own.asks.weight[m] @ features[node] for m in range(3)]).softmax(0)
        wanted = features[node] + sum(shares[m] * own.tokens[m] for m in range(3))
        assert torch.allclose(changed[node], wanted, atol=1e-5)
    assert torch.allclose(own(features.to_sparse_csr()).dense(), changed, atol=1e-6)


def test_one_token_is_the_same_for_all_nodes(features):
    own = FeaturePrompt(12, 1)
    torch.nn.init.normal_(own.tokens)
    assert torch.allclose(own(features).dense() - features, own.tokens.expand(30, 12), atol=1e-6)


def test_staying_near_costs_the_squared_shift_relative_to_the_features(features):
    shares, tokens = torch.rand(30, 2), torch.randn(2, 12)
    log_p = log_probabilities(torch.randn(30, 4), False)
    config = PromptSection(tokens=1, consistency=3.0, nearness=0.5)
    features[features.abs().sum(1) == 0, 0] = 1.0
    shift = shares @ tokens
    near = sum(float(s.norm() ** 2 / x.norm() ** 2) for s, x in zip(shift, features)) / 30
    other = log_probabilities(torch.randn(30, 4), False)
    kl = torch.nn.functional.kl_div(other[:, 0], log_p[:, 0], log_target=True, reduction="batchmean")
    for x in (features, features.to_sparse_csr()):
        found = prompt.undistorted(torch.tensor(0.7), log_p, other, Shifted(x, shares, tokens), config)
        assert found.item() == pytest.approx(0.7 + 3 * kl.item() + 0.5 * near, rel=1e-4)


def test_views_that_agree_more_than_the_margin_cost_and_others_do_not():
    z = torch.randn(20, 6)
    config = PromptSection(tokens=1, margin=0.5)
    assert prompt.diverse([z, 2 * z], config).item() == pytest.approx(0.5, abs=1e-5)
    assert prompt.diverse([z, -z], config).item() == 0
    assert prompt.diverse([z, 2 * z, -z], config).item() == pytest.approx(0.5 / 3, abs=1e-5)


def test_linear_cka_is_that_of_kernels_and_knows_no_rotation():
    torch.manual_seed(1)
    one, two = torch.randn(15, 4), torch.randn(15, 6)
    centre = torch.eye(15) - 1 / 15
    kernels = [centre @ z @ z.t() @ centre for z in (one, two)]
    wanted = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert prompt.overlap(one, two, "cka").item() == pytest.approx(wanted.item(), rel=1e-4)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert prompt.overlap(one, 3 * one @ rotation, "cka").item() == pytest.approx(1.0, abs=1e-5)


def test_while_prompts_learn_the_networks_are_constants(features):
    network, own = make_network("gcn", 12, 3, NetworkConfig(hidden=8)), FeaturePrompt(12, 2)
    edges = torch.randint(30, (2, 60))
    with constant(network):
        _, logits = network(own(features), edges)
    logits.square().sum().backward()
    assert own.tokens.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_every_network_reads_a_prompt_that_is_not_multiplied_out_like_one_that_is(features, name):
    network, own = make_network(name, 12, 3, NetworkConfig(hidden=8)).eval(), FeaturePrompt(12, 2)
    torch.nn.init.normal_(own.tokens)
    edges = torch.randint(30, (2, 60))
    _, wanted = network(own(features).dense(), edges)
    for x in (features, features.to_sparse_csr()):
        assert torch.allclose(network(own(x), edges)[1], wanted, atol=1e-5)
