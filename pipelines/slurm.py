"""What Slurm says of the step that this process belongs to, checked before anything heavy is imported. Imports no torch."""

import os
import re
import time
from collections.abc import Mapping
from typing import Literal

from pipelines.errors import ConfigError
from pipelines.schema import RunConfig

LEFT_OVER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of another launch; each would be believed
Launcher = Literal["srun", "torchrun", "here"]


def launcher(env: Mapping[str, str] = os.environ) -> Launcher:
    """Tell what starts the processes of a run: srun or torchrun have, or they are started here.

    A shell on a node (salloc, `srun --pty bash`) is a step of one task with a terminal; what is typed there is not started by srun.
    """
    if "TORCHELASTIC_RUN_ID" in env:
        return "torchrun"
    if "SLURM_STEP_ID" not in env or "SLURM_PROCID" not in env:
        return "here"
    return "here" if _tasks(env) == 1 and "SLURM_PTY_PORT" in env else "srun"


def in_job(env: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is part of a job of Slurm."""
    return "SLURM_JOB_ID" in env


def first_node(env: Mapping[str, str] = os.environ) -> str:
    """Name the first node of the step, which need not be the first of the job: node7 of `node[7-8,12]`."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "127.0.0.1")
    first = re.match(r"[^,\[]+(\[[^\]]*\])?[^,\[]*", nodes)
    assert first, nodes
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def port(env: Mapping[str, str] = os.environ) -> int:
    """Choose where the processes of a step meet: the same on all of them, another for each job and each of its steps."""
    step = env.get("SLURM_STEP_ID", "0")
    return 15000 + (int(env["SLURM_JOB_ID"]) * 7 + (int(step) if step.isdigit() else 0)) % 15000


def check_step(config: RunConfig, env: Mapping[str, str] = os.environ) -> None:
    """Refuse a job whose processes are not those that the run asks for, in one line of its first process."""
    if not in_job(env):
        return
    problem = _problem(config, env)
    if problem is None:
        return
    if env.get("SLURM_PROCID", "0") != "0":
        time.sleep(3)  # a process that fails first may end the others, and the first one has something to say
        raise SystemExit(2)
    raise ConfigError(problem)


def _problem(config: RunConfig, env: Mapping[str, str]) -> str | None:
    nodes, devices = config.trainer.num_nodes, config.trainer.devices
    how = launcher(env)
    if how == "here":
        by_hand = nodes == 1 or "NODE_RANK" in env
        return None if by_hand else (f"trainer.num_nodes: {nodes} nodes, but srun did not start this process (SLURM_STEP_ID is not set), "
                                     "so the others would be waited for without end. Write srun fivefold train …, or fivefold submit")
    if how == "torchrun":
        return None
    return _left_over(env) or _counts(nodes, devices, env) or _gpus(devices, env)


def _left_over(env: Mapping[str, str]) -> str | None:
    """Refuse the place that another launch has left in the environment, such as that of a shell started by torchrun."""
    meant = {"RANK": env["SLURM_PROCID"], "LOCAL_RANK": env.get("SLURM_LOCALID"), "WORLD_SIZE": str(_tasks(env))}
    wrong = [f"{name}={env[name]}" for name, value in meant.items() if env.get(name, value) != value]
    if not wrong:
        return None
    return f"{' '.join(wrong)}: left over from another launch, and wrong under srun. Write unset {' '.join(LEFT_OVER)} before srun"


def _counts(nodes: int, devices: int, env: Mapping[str, str]) -> str | None:
    """Compare what srun started on each node with what was asked for."""
    found = _per_node(env)
    if found == [devices] * nodes:
        return None
    if len(set(found)) > 1:
        return (f"trainer.devices: srun started {' + '.join(map(str, found))} tasks on {len(found)} nodes, and each must have {devices}. "
                f"Write srun --nodes={nodes} --ntasks-per-node={devices}")
    key = "devices" if len(found) == nodes else "num_nodes"
    return (f"trainer.{key}: srun started {len(found)} nodes x {found[0]} tasks = {sum(found)} processes, but trainer.num_nodes={nodes} x "
            f"trainer.devices={devices} are {nodes * devices}. Write srun --nodes={nodes} --ntasks-per-node={devices}, or "
            f"trainer.num_nodes={len(found)} trainer.devices={found[0]}")


def _gpus(devices: int, env: Mapping[str, str]) -> str | None:
    if devices > 1 and "SLURM_GPUS_PER_TASK" in env:
        return (f"trainer.devices: --gpus-per-task hides from each process the GPUs of the {devices - 1} others on its node. "
                f"Write --gpus-per-node={devices} instead")
    return None


def _tasks(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)


def _per_node(env: Mapping[str, str]) -> list[int]:
    """Read the tasks on each node of a step, which Slurm writes as `2(x3),1`."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
    found: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found
