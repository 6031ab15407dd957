"""Whole-matrix updates on spread weights: the same bits as one process, whatever the layout."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.optim.sharding import Spread, balanced_owners, copies_of, packed, rounds_of, rows_of

WORKER = Path(__file__).with_name("spread_worker.py")


def run_on(processes, *checks):
    """Start the worker on several gloo processes; return what rank 0 reports."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(WORKER), *checks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_weights_and_saved_state_equal_one_process_bit_for_bit_on_every_layout(processes):
    reports = run_on(processes, "compare")
    bitwise = [r for r in reports if r["check"] == "bitwise"]
    assert {r["layout"] for r in bitwise} == {"Copies", "Rows", "Flat", *(["ReplicatedRows"] if processes == 4 else [])}
    assert [r for r in bitwise if not (r["weights"] and r["state"])] == []
    changed = [r for r in reports if r["check"] == "changed layout"]
    assert len(changed) == 5
    assert all(r["weights"] for r in changed)


def test_state_is_shared_out_and_bad_or_missing_gradients_meet_all_processes_alike():
    shares, raised, skipped, different, columns = run_on(3, "shares", "raise", "skip", "different", "columns")
    assert shares["owners"] == [0, 1, 2]
    assert max(shares["kept"]) < 0.6 * sum(shares["kept"])  # five matrices of very different size cannot be shared out evenly
    numbers = 64 * 32 + 5 * 64 + 33 * 17 + 48 * 48 + 5
    assert shares["sent"] <= 2 * numbers
    assert len(set(raised["messages"])) == 1
    assert "c_mlp" in raised["messages"][0]
    assert raised["untouched"]
    assert set(skipped["messages"]) == {""}
    assert skipped["untouched"]
    assert "ranks [1] see other parameters" in different["message"]
    assert "use strategy=fsdp without tensor parallelism" in columns["message"]


def test_rows_are_spread_as_torch_chunks_them():
    for rows, world_size in [(7, 3), (1, 4), (8, 2), (5, 4), (3, 8)]:
        matrix = torch.arange(rows * 6).view(rows, 6)
        chunks = [chunk.reshape(-1) for chunk in matrix.chunk(world_size)]
        chunks += [matrix.new_empty(0)] * (world_size - len(chunks))
        spread = rows_of("w", (rows, 6), world_size)
        assert all(torch.equal(matrix.view(-1)[start:stop], chunk) for (start, stop), chunk in zip(spread.intervals, chunks))


def test_the_sources_of_a_matrix_cover_it_exactly_once():
    for spread in (rows_of("w", (7, 6), 3), copies_of("w", (7, 6), 3), Spread("w", (7, 6), ((0, 0), (0, 42), (42, 42)))):
        for owner in range(3):
            covered = sorted(i for rank in spread.sources(owner) for i in range(*spread.intervals[rank]))
            assert covered == list(range(42))


def test_owners_are_balanced_by_cost_or_stay_where_most_of_a_matrix_lies():
    spreads = [Spread(str(i), (10, 10), ((0, 30), (30, 100))) for i in range(9)]
    costs = {str(i): float(2**i) for i in range(9)}
    owners = balanced_owners(spreads, costs, 2, stay=False)
    load = [sum(cost for name, cost in costs.items() if owners[name] == rank) for rank in range(2)]
    assert load == [256.0, 255.0]
    assert set(balanced_owners(spreads, costs, 2, stay=True).values()) == {1}


def test_packs_keep_the_order_and_the_limit():
    assert packed([60, 40, 1, 500, 2], int, 100) == [[60, 40], [1], [500], [2]]


def test_no_owner_waits_long_for_another_although_buckets_are_small():
    shapes = {f"{layer}.{name}": shape for layer in range(8) for name, shape in (("q", (64, 64)), ("up", (172, 64)), ("down", (64, 172)))}
    spreads = [rows_of(name, shape, 8) for name, shape in shapes.items()]
    costs = {spread.name: float(spread.count) for spread in spreads}
    owners = balanced_owners(spreads, costs, 8, stay=False)
    limit = 172 * 64
    buckets = rounds_of(spreads, owners, limit)
    assert sorted(itertools.chain(*buckets)) == sorted(shapes)
    held = [[sum(costs[name] for name in names if owners[name] == rank) for rank in range(8)] for names in buckets]
    assert max(map(max, held)) <= limit
    assert sum(map(max, held)) <= 1.01 * sum(costs.values()) / 8  # what the busiest owner of each bucket does, one bucket after another
