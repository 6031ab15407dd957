"""The sections that every run has, whatever its method. No import here may pull in torch.

A dataclass may have a method `without_effect` that maps keys which do nothing beside its other values to the reason; `compose` warns
whoever has set one of them.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

TAG = 64  # characters


def positive(name: str, value: float | None) -> None:
    """Refuse zero and negative values of `name`; None means "not set" and passes."""
    if value is not None and value <= 0:
        raise ValueError(f"{name}: must be above 0, not {value}")


def not_negative(name: str, value: float | None) -> None:
    """Refuse negative values of `name`; None passes."""
    if value is not None and value < 0:
        raise ValueError(f"{name}: must be 0 or above, not {value}")


@dataclass(frozen=True)
class RunSection:
    name: str | None = None
    """folder of the run under run.root; default: experiment, optimizer, seed and time"""
    root: str = "~/fivefold-runs"
    """folder that holds all runs"""
    seed: int = 1
    """seeds python, numpy, torch and the data order"""
    seeds: int = 1
    """train under so many seeds, run.seed and those after it, as runs of one group, and compare them at the end"""
    resume: str | None = None
    """auto (newest unfinished run with the same settings), a run folder, or a checkpoint"""
    tags: list[str] = field(default_factory=list)
    """labels for W&B and the run record"""
    notes: str = ""
    """free text for the run record"""

    def __post_init__(self) -> None:
        positive("seeds", self.seeds)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: must lie in 0..2^32-1, not {self.seed}")
        if self.seed + self.seeds > 2**32:
            raise ValueError(f"seeds: must leave all seeds from {self.seed} on in 0..2^32-1, not {self.seeds}")
        if self.name is not None and not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]+", self.name):
            raise ValueError(f"name: must be the name of one folder, not '{self.name}'; run.root says where it lies")
        for tag in self.tags:
            if not 1 <= len(tag) <= TAG:
                raise ValueError(f"tags: W&B takes tags of 1 to {TAG} characters, not '{tag}'; run.notes holds longer texts")


@dataclass(frozen=True)
class TrainerSection:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """device kind; auto takes a GPU where there is one"""
    devices: int = 1
    """processes on each node, one a device"""
    num_nodes: int = 1
    """machines"""
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    """arithmetic of the forward and backward pass"""
    max_steps: int = -1
    """optimizer steps to train for; -1: until max_epochs"""
    max_epochs: int | None = None
    """passes over the training data; None: until max_steps"""
    max_time: str | None = None
    """stop after this long, as DD:HH:MM:SS"""
    accumulate_grad_batches: int = 1
    """batches summed into one optimizer step"""
    gradient_clip_val: float | None = None
    """largest gradient norm, cut before the optimizer; None: no clipping"""
    val_every_n_steps: int | None = None
    """validate after so many optimizer steps; None: at the end of each epoch"""
    limit_train_batches: int | None = None
    """batches of a training epoch; None: all"""
    limit_val_batches: int | None = None
    """batches of a validation; None: all, 0: never validate"""
    log_every_n_steps: int = 10
    """optimizer steps between two rows of training metrics"""
    deterministic: bool = False
    """ask torch for deterministic kernels; slower on GPUs"""
    fast_dev_run: bool = False
    """one batch of everything, nothing saved: does it run at all?"""
    overfit_batches: int = 0
    """train on the first so many batches again and again, and validate on as many; 0: off"""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """pytorch: some steps as a table and a trace in the run folder; simple, advanced: those of Lightning"""
    detect_anomaly: bool = False
    """on one process: watch every layer, forward and backward, and name the first that gives inf or NaN; slow"""
    threads: int | None = None
    """CPU threads of torch in each process; None: torch's own choice"""
    keep_memory: bool = False
    """on a CPU, keep freed memory for the next step: up to 1.8 times as fast where batches are large, for two to four times the memory"""

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "accumulate_grad_batches", "log_every_n_steps", "gradient_clip_val",
                     "val_every_n_steps", "limit_train_batches", "max_epochs", "threads"):
            positive(name, getattr(self, name))
        for name in ("limit_val_batches", "overfit_batches"):
            not_negative(name, getattr(self, name))
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps: must be above 0, or -1 for no limit, not {self.max_steps}")
        if self.max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time):
            raise ValueError(f"max_time: must be written DD:HH:MM:SS, such as 00:01:30:00, not {self.max_time}")

    def without_effect(self) -> dict[str, str]:
        """Name the keys that a trial run overrides, an interval between validations that never happen, and what CPUs alone read."""
        if self.fast_dev_run:
            names = ("max_steps", "max_epochs", "val_every_n_steps", "limit_train_batches", "limit_val_batches", "overfit_batches")
            return dict.fromkeys(names, "fast_dev_run takes one batch of everything")
        idle = {"keep_memory": "accelerator=gpu trains on no CPU"} if self.accelerator == "gpu" else {}
        if self.devices * self.num_nodes > 1:
            idle["detect_anomaly"] = "it watches one process; of several, the others would wait for the one that stops"
        return idle | ({"val_every_n_steps": "limit_val_batches=0 means no validation"} if self.limit_val_batches == 0 else {})


@dataclass(frozen=True)
class CheckpointSection:
    every_n_steps: int = 500
    """optimizer steps between two checkpoints"""
    keep: int = 1
    """older checkpoints kept beside the newest, to which last.ckpt is a link; -1: all"""
    save_last: bool = True
    """write a checkpoint when training ends, whatever the interval"""
    sharded: bool = False
    """fsdp: each process writes its own part into a folder, for models that one process cannot hold; nodes must share run.root"""
    best: str | None = None
    """metric of the validation, such as val/accuracy, whose best checkpoint is kept as well, as best.ckpt; None: the newest ones only"""
    best_is: Literal["highest", "lowest"] = "highest"
    """which value of that metric is best"""

    def without_effect(self) -> dict[str, str]:
        """Name what asks for no metric."""
        return {} if self.best else {"best_is": "checkpoint.best names no metric"}

    def __post_init__(self) -> None:
        positive("every_n_steps", self.every_n_steps)
        if self.keep < -1:
            raise ValueError(f"keep: must be -1 (all) or a count, not {self.keep}")


@dataclass(frozen=True)
class StrategySection:
    name: Literal["single", "ddp", "fsdp", "deepspeed"] = "single"
    """how processes share the work: ddp keeps all weights on each, fsdp and deepspeed spread them"""
    stage: int = 2
    """deepspeed: what is spread; 1 optimizer state, 2 gradients as well, 3 weights as well"""
    find_unused_parameters: bool = False
    """ddp: allow steps in which some parameters get no gradient"""

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage: must be 1, 2 or 3, not {self.stage}; strategy=ddp is the one that spreads nothing")

    def without_effect(self) -> dict[str, str]:
        """Name the keys of other strategies."""
        others = {"stage": "deepspeed", "find_unused_parameters": "ddp"}
        return {key: f"only strategy={owner} has it" for key, owner in others.items() if owner != self.name}


@dataclass(frozen=True)
class LoggerSection:
    name: Literal["wandb", "csv"] = "wandb"
    """where metrics go; metrics.csv is written always"""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B: auto is online when logged in and offline otherwise, never a question"""
    project: str = "fivefold"
    """W&B project"""
    entity: str | None = None
    """W&B team or user"""
    group: str | None = None
    """runs that belong together, for W&B and `fivefold report`"""
    data: bool = True
    """W&B: an artifact that lists what a finished run learned from: files with their digests, or what made the data"""
    checkpoints: Literal["off", "reference", "upload"] = "reference"
    """W&B: an artifact of a finished run's newest and best checkpoint; reference: where they lie and how large they are, upload: whole"""

    def without_effect(self) -> dict[str, str]:
        """Name the keys that only W&B reads."""
        return dict.fromkeys(("mode", "project", "entity", "data", "checkpoints"), "name=csv leaves W&B out") if self.name == "csv" else {}


@dataclass(frozen=True)
class ClusterSection:
    name: Literal["local", "slurm"] = "local"
    """where the run is launched; slurm: fivefold submit queues it"""
    time: str | None = None
    """time limit of a job, at which it is queued again and goes on: MINUTES, H:MM:SS or D-H:MM:SS; None: that of the partition"""
    partition: str | None = None
    """partition to queue in; None: the cluster's default"""
    account: str | None = None
    """account that is charged"""
    qos: str | None = None
    """quality of service"""
    constraint: str | None = None
    """features that nodes must have, such as a100&ib"""
    memory: str | None = None
    """memory of each node, such as 200G; None: the partition's default"""
    cpus: int | None = None
    """CPU cores of each process; None: the partition's default"""
    gpu_type: str | None = None
    """kind of GPU to ask for, where a cluster has several"""
    options: list[str] = field(default_factory=list)
    """further options of sbatch, such as --reservation=NAME"""
    container: str | None = None
    """image to run in, by pyxis (srun --container-image)"""
    mounts: str | None = None
    """folders that the container sees besides run.root, as pyxis writes them"""
    python: str | None = None
    """interpreter on the nodes; None: the one that submits, or python3 in a container"""
    env: str | None = None
    """shell file to read before training, for modules and settings of the site; None: slurm/env.sh"""
    margin: int = 120
    """seconds before the time limit at which a run saves and stops: enough for a step, a validation and a save"""
    requeues: int = 100
    """times that a job is queued again at most"""
    tries: int = 3
    """starts of a job from the same step after which it is given up"""

    def __post_init__(self) -> None:
        for name in ("cpus", "margin", "requeues", "tries"):
            positive(name, getattr(self, name))
        if self.time is None:
            return
        if not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", self.time):
            raise ValueError(f"time: must be MINUTES, H:MM:SS or D-H:MM:SS, such as 12:00:00, not {self.time}")
        if self.seconds <= self.margin:
            raise ValueError(f"time: must be above cluster.margin={self.margin} s, not {self.time}, which is {self.seconds} s")

    @property
    def seconds(self) -> int:
        """The time limit in seconds; 0 if there is none."""
        days, dash, clock = (self.time or "0").rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:  # Slurm reads one number as minutes, two as minutes and seconds
            hours, minutes, seconds = [[0, *parts, 0], [0, *parts], parts][len(parts) - 1]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    def without_effect(self) -> dict[str, str]:
        """Name what only a queued job reads."""
        if self.name == "local":
            names = ("time", "partition", "account", "qos", "constraint", "memory", "cpus", "gpu_type", "options", "container", "mounts",
                     "python", "env", "margin", "requeues", "tries")
            return dict.fromkeys(names, "cluster=local queues nothing")
        return {} if self.container else {"mounts": "cluster.container names no image"}


@dataclass(frozen=True)
class Component:
    """A class named by a YAML file, and the values for the one dataclass that its constructor takes."""

    target: str  # dotted path, such as lightning_modules.fira.module.FiraModule
    config: Any  # an instance of that dataclass, read from its source without importing the module


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run: what `compose` returns and `build` takes."""

    method: str
    experiment: str | None
    module: Component
    data: Component
    optim: Component
    run: RunSection
    trainer: TrainerSection
    checkpoint: CheckpointSection
    strategy: StrategySection
    logger: LoggerSection
    cluster: ClusterSection
    choices: dict[str, str] = field(default_factory=dict)  # group -> chosen file
    origins: dict[str, str] = field(default_factory=dict)  # dotted key -> where its value came from


SECTIONS: dict[str, type] = {"run": RunSection, "trainer": TrainerSection, "checkpoint": CheckpointSection,
                             "strategy": StrategySection, "logger": LoggerSection, "cluster": ClusterSection}
COMPONENTS = {"module": ["config", "optimizer"], "data": ["config"],  # section -> what the constructor of its class must be given
              "optim": ["named_parameters", "config"]}
GROUPS = ("method", "optim", "strategy", "trainer", "logger", "cluster", "experiment")
