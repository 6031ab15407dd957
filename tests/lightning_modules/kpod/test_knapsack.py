"""The solver beside brute force over all subsets, and beside a greedy that re-evaluates every question at every step."""

import itertools
import time

import numpy as np
import pytest

from lightning_modules.kpod.solver import solve


def value(chosen, costs, clusters, beta):
    chosen = np.asarray(chosen, int)
    return costs[chosen].sum() + beta * np.sqrt(np.bincount(clusters[chosen])).sum()


def optimum(costs, clusters, budget, beta):
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(costs)), size) for size in range(len(costs) + 1))
    return max(value(s, costs, clusters, beta) for s in subsets if costs[list(s)].sum() <= budget)


def naive_greedy(costs, clusters, budget, beta):
    """Take the densest question that still fits, as long as one does; densities are worked out from G anew each time."""
    taken, left = [], set(range(len(costs)))
    while True:
        now = value(taken, costs, clusters, beta)
        spent = sum(costs[i] for i in taken)
        fits = [i for i in left if spent + costs[i] <= budget]
        if not fits:
            return taken
        best = max(fits, key=lambda i: ((value([*taken, i], costs, clusters, beta) - now) / costs[i], -clusters[i], -i))
        taken.append(best)
        left.remove(best)


def draw(seed, largest):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, largest + 1))
    costs = random.lognormal(0, random.choice([0.3, 1.0, 2.0]), n)
    return costs, random.integers(0, 5, n), costs.sum() * random.uniform(0.02, 0.9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 12.0])
def test_the_choice_is_affordable_and_reaches_half_of_the_best_of_all_subsets(beta):
    shares = []
    for seed in range(60):
        costs, clusters, budget = draw(seed, largest=9)
        chosen = solve(costs, clusters, budget, beta)
        assert len(set(chosen.tolist())) == len(chosen)
        assert costs[chosen].sum() <= budget * (1 + 1e-12)
        best = optimum(costs, clusters, budget, beta)
        shares.append(value(chosen, costs, clusters, beta) / best if best else 1.0)
    print(f"beta {beta}: worst {min(shares):.3f}, mean {np.mean(shares):.4f} of the optimum")
    assert min(shares) >= 0.5
    assert beta == 0 or np.mean(shares) >= 0.95


def test_fourteen_questions_reach_nearly_the_optimum():
    shares = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        costs, clusters = random.lognormal(0, 0.7, 14), random.integers(0, 5, 14)
        budget = 0.4 * costs.sum()
        shares.append(value(solve(costs, clusters, budget, 12.0), costs, clusters, 12.0) / optimum(costs, clusters, budget, 12.0))
    assert min(shares) >= 0.95


@pytest.mark.parametrize("beta", [0.5, 12.0])
def test_one_sort_takes_what_the_greedy_that_re_evaluates_everything_takes(beta):
    for seed in range(40):
        costs, clusters, budget = draw(seed, largest=40)
        assert solve(costs, clusters, budget, beta, augment=False).tolist() == naive_greedy(costs, clusters, budget, beta)


def test_no_beta_above_zero_changes_the_order():
    costs, clusters, budget = np.random.default_rng(3).lognormal(0, 1, 500), np.random.default_rng(4).integers(0, 5, 500), 100.0
    one = solve(costs, clusters, budget, 1.0, augment=False)
    assert one.tolist() == naive_greedy(costs, clusters, budget, 100.0)
    for beta in (1e-3, 12.0, 100.0):
        assert np.array_equal(solve(costs, clusters, budget, beta, augment=False), one)


@pytest.mark.parametrize("beta", [0.0, 12.0])
def test_the_order_in_which_questions_come_does_not_matter(beta):
    random = np.random.default_rng(5)
    costs = random.choice([0.5, 1.0, 1.5, 2.0], 300)  # many are equal
    clusters, ties = random.integers(0, 4, 300), random.permutation(300)
    chosen = solve(costs, clusters, 100.0, beta, ties)
    shuffled = random.permutation(300)
    again = solve(costs[shuffled], clusters[shuffled], 100.0, beta, ties[shuffled])
    assert np.array_equal(shuffled[again], chosen)


def test_without_variety_the_given_order_alone_decides():
    costs, ties = np.array([3.0, 1.0, 2.0, 1.0]), np.array([1, 3, 0, 2])
    assert solve(costs, np.array([0, 1, 0, 1]), 4.0, 0.0, ties).tolist() == [2, 3, 1]  # 3.0 comes second and no longer fits


def test_the_augmentation_takes_one_dear_question_instead_of_a_poor_ending():
    costs, clusters = np.array([1.0, 10.0]), np.array([0, 0])
    assert solve(costs, clusters, 10.0, 0.1, augment=False).tolist() == [0]
    assert solve(costs, clusters, 10.0, 0.1).tolist() == [1]


def test_questions_without_difficulty_are_always_taken_and_an_empty_list_is_no_error():
    assert sorted(solve(np.zeros(4), np.array([0, 1, 0, 1]), 0.0, 12.0).tolist()) == [0, 1, 2, 3]
    for beta in (0.0, 12.0):
        assert solve(np.zeros(0), np.zeros(0, int), 1.0, beta).tolist() == []
        assert solve(np.ones(2), np.zeros(2, int), 0.5, beta).tolist() == []
        assert solve(np.ones(2), np.zeros(2, int), -1.0, beta).tolist() == []


def test_a_hundred_thousand_questions_take_seconds_at_most():
    random = np.random.default_rng(0)
    costs, clusters = random.lognormal(0, 0.9, 100_000), random.integers(0, 5, 100_000)
    begin = time.process_time()
    solve(costs, clusters, 0.1 * costs.sum(), 12.0)
    assert time.process_time() - begin < 5
