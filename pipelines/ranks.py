"""fivefold doctor --ranks: do the processes of a job reach each other, is what they add up right, and how fast is it?

Under srun or torchrun every process runs this; elsewhere one process looks at itself alone. NCCL on GPUs, gloo on CPUs.
"""

import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.slurm import first_node, launcher, port

SIZES = (2**10, 2**16, 2**22, 2**26)  # bytes that are added up
SECONDS = 60  # after which processes that do not meet, or a sum that does not come, are given up
TIMES = 5  # repetitions of which the fastest counts


def check_ranks(sizes: tuple[int, ...] = SIZES) -> int:
    """Meet, add up, and print from the first process; exit status 1 with one line where that fails."""
    try:
        rank, world = meet()
    except Exception as error:
        return _failed("the processes did not meet", error)
    try:
        hosts: list[str] = [""] * world
        dist.all_gather_object(hosts, socket.gethostname())
        wrong = [size for size in sizes if not sums_right(size, rank, world)]
        rows = [(size, fastest(size)) for size in sizes]
    except Exception as error:
        return _failed("the processes met and then lost each other", error)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        per_host = ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts))
        print(f"ok    ranks: {world} processes met by {_backend()} ({per_host})")
        for size, seconds in rows:
            print(f"{'FAIL' if size in wrong else 'ok  '}  all-reduce: {size / 2**20:g} MiB in {seconds * 1e3:.3f} ms, "
                  f"{bus_bandwidth(size, seconds, world) / 1e9:.2f} GB/s{', and the sum is WRONG' if size in wrong else ''}")
    return int(bool(wrong))


def meet() -> tuple[int, int]:
    """Start the process group that the launcher describes; return rank and number of processes."""
    env = os.environ
    if launcher() == "srun":
        rank, world, local = (int(env[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
        address = f"tcp://{first_node()}:{port()}"
    else:
        rank, world, local = (int(env.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
        address = f"tcp://{env.get('MASTER_ADDR', '127.0.0.1')}:{env['MASTER_PORT']}" if world > 1 else f"tcp://127.0.0.1:{_free_port()}"
        if launcher() == "torchrun":
            address = "env://"  # whose store the launcher keeps
    if _backend() == "nccl":
        torch.cuda.set_device(local % torch.cuda.device_count())
    dist.init_process_group(_backend(), init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS))
    return rank, world


def sums_right(size: int, rank: int, world: int) -> bool:
    """Add up numbers that tell ranks and places apart, and compare with the closed form: sum over r of (r + 1) (i mod 7 + 1)."""
    places = torch.arange(size // 4, device=_device()) % 7 + 1
    values = ((rank + 1) * places).float()
    dist.all_reduce(values)
    right = torch.equal(values, (places * (world * (world + 1) // 2)).float())
    verdicts: list[bool] = [True] * world
    dist.all_gather_object(verdicts, right)
    return all(verdicts)


def fastest(size: int) -> float:
    """Time an all-reduce of `size` bytes; the fastest of several, in seconds."""
    values = torch.ones(size // 4, device=_device())
    found = []
    for _ in range(TIMES):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        _wait(values)
        found.append(time.perf_counter() - began)
    return min(found)


def bus_bandwidth(size: int, seconds: float, world: int) -> float:
    """Bytes a second through each process's link, as nccl-tests counts it: a sum has to move 2 (n - 1) / n of the data."""
    return size / seconds * 2 * (world - 1) / world


def _wait(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize()


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _device() -> str:
    return "cuda" if _backend() == "nccl" else "cpu"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _failed(what: str, error: Exception) -> int:
    reason = " ".join(str(error).split())[:300]
    advice = "; NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME chooses the network" if _backend() == "nccl" else ""
    print(f"FAIL  ranks: {what}: {type(error).__name__}: {reason}{advice}", flush=True)
    return 1
