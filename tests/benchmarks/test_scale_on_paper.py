"""The model of many GPUs on paper: its terms equal closed forms."""

import pytest
import scale_on_paper
from scale_on_paper import LATENCY, Rates, efficiency, svd_work


def test_a_ring_sends_all_but_its_own_part_and_takes_a_hop_for_each_other_process():
    rates = Rates(node=100.0, network=10.0, gpus_per_node=8)
    assert rates.ring(3, 1000, 4, 8) == pytest.approx((3 * 2 * 1000 * 7 / 8 / 100, 3 * 4 * 7 * LATENCY))
    assert rates.ring(2, 1000, 4, 16) == pytest.approx((2 * 2 * 1000 * 15 / 16 / 10, 2 * 4 * 15 * LATENCY))


def test_an_exchange_waits_for_the_slower_of_node_and_network():
    rates = Rates(node=100.0, network=10.0, gpus_per_node=8)
    assert rates.all_to_all(1500.0, 8) == 15.0
    assert rates.all_to_all(1500.0, 16) == pytest.approx(1500 * (8 / 15) / 10)


def test_efficiency_is_the_share_that_computes_and_the_wall_what_costs_most():
    assert efficiency(6.0, {"a": 1.0, "b": 3.0}) == (0.6, "b")


def test_svd_work_is_the_size_by_the_short_side():
    import torch

    assert svd_work([torch.Size((3, 5)), torch.Size((4, 2))]) == 3 * 5 * 3 + 4 * 2 * 2


def test_the_page_holds_a_row_for_each_size_strategy_and_number_of_gpus():
    page = scale_on_paper.PAGE.read_text()
    for size in ("1B", "7B"):
        for strategy in scale_on_paper.PASSES:
            assert all(f"| {size} | {strategy} | {gpus:,} |" in page for gpus in scale_on_paper.GPUS)
