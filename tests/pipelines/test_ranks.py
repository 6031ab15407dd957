"""fivefold doctor --ranks: processes that meet, a sum that is checked, and one line where that fails."""

import os
import re
import subprocess
import sys

import pytest

from pipelines.ranks import bus_bandwidth
from tests.slurm.cluster import free_port

START = "import sys; from pipelines import ranks; ranks.SECONDS = {seconds}; {more}; sys.exit(ranks.check_ranks((1024, 65536)))"


def processes(more="0", world=2, started=2, seconds=60, **names):
    """Run the check as several processes do under a launcher that sets the usual variables; return what each printed, and its status."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # a port is free until torch has started
    port = free_port(24000 + 200 * worker)
    base = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC"))}
    base |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **names}
    command = [sys.executable, "-P", "-c", START.format(more=more, seconds=seconds)]
    running = [subprocess.Popen(command, env={**base, "RANK": str(r), "LOCAL_RANK": str(r)},
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in range(started)]
    return [(process.communicate(timeout=120)[0], process.returncode) for process in running]


def test_two_processes_meet_and_add_up():
    (first, status), (second, other) = processes()
    assert (status, other, second) == (0, 0, "")
    lines = first.splitlines()
    assert re.fullmatch(r"ok    ranks: 2 processes met by (gloo|nccl) \(2 on \S+\)", lines[0])
    assert len(lines) == 3
    for line, size in zip(lines[1:], ("0.000976562", "0.0625")):
        assert re.fullmatch(rf"ok    all-reduce: {size} MiB in [\d.]+ ms, [\d.]+ GB/s", line)


def test_a_network_that_adds_up_wrongly_is_found_on_every_process():
    broken = "plain = ranks.dist.all_reduce; ranks.dist.all_reduce = lambda x: (plain(x), x[-1:].add_(1))"
    (first, status), (_, other) = processes(broken)
    assert (status, other) == (1, 1)
    assert first.count("and the sum is WRONG") == 2
    assert first.startswith("ok    ranks: 2 processes met")


def test_a_process_that_never_comes_costs_one_line_and_not_a_night():
    ((said, status),) = processes(started=1, seconds=5)
    assert status == 1
    assert said.count("\n") == 1
    assert said.startswith("FAIL  ranks: the processes did not meet: ")


def test_processes_of_srun_are_told_by_slurms_own_variables():
    port = "import os; os.environ.update(SLURM_PROCID=os.environ['RANK'], SLURM_LOCALID=os.environ['RANK']); os.environ.pop('RANK')"
    names = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0"}
    (first, status), (_, other) = processes(port, WORLD_SIZE="9", **names)
    assert (status, other) == (0, 0), first
    assert "2 processes met" in first


def test_one_process_alone_looks_at_itself():
    ((said, status),) = processes(world=1, started=1)
    assert status == 0
    assert "1 processes met" in said


@pytest.mark.parametrize(("world", "share"), [(1, 0.0), (2, 1.0), (4, 1.5), (8, 1.75)])
def test_bandwidth_counts_what_a_ring_moves(world, share):
    assert bus_bandwidth(1000, 2.0, world) == 500 * share
