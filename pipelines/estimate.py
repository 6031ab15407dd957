"""fivefold estimate: the memory of a run on each device, by category, before there is a device. Needs no GPU and no data."""

import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipelines.config import ConfigError, compose, split_flags
from pipelines.errors import hint
from pipelines.schema import RunConfig

if TYPE_CHECKING:
    from pipelines.rehearsal import Memory

OWN = ("device", "vocab_size")
DEVICES = {"T4": 16, "V100-16GB": 16, "V100-32GB": 32, "RTX3090": 24, "RTX4090": 24, "L4": 24, "A10": 24, "A40": 48, "L40S": 48,
           "A100-40GB": 40, "A100-80GB": 80, "H100": 80, "H200": 141, "B200": 180}  # GB, as their maker states
TIGHT = 0.9  # share of a device from which on what is not counted may not find room
HELP = f"""fivefold estimate experiment=NAME [group=choice …] [section.key=value …] [device=80GB] [vocab_size=N]

Tells how much memory each process needs for parameters, gradients, optimizer state, communication and activations, and whether that
fits the device. One step runs on tensors without memory, with the real module, optimizer and strategy: trainer.devices,
trainer.num_nodes, trainer.precision, data.batch_size and module.gradient_checkpointing count. No data is read.

  device      memory of the device, such as 80GB or 80GiB, or its name: {", ".join(DEVICES)}
  vocab_size  tokens of a tokenizer that is not on this machine"""


def run(argv: list[str]) -> int:
    """Print the estimate for the run that the words in `argv` describe."""
    flags, words = split_flags(argv, ("--help",))
    if "--help" in flags:
        print(HELP)
        return 0
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN}
    device = device_bytes(own["device"]) if "device" in own else None
    vocab_size = own.get("vocab_size")
    if vocab_size is not None and not (vocab_size.isdecimal() and int(vocab_size) > 0):
        raise ConfigError(f"vocab_size: must be a number of tokens, not {vocab_size}")
    config = compose([word for word in words if word.partition("=")[0] not in OWN], "estimate")
    memory, notes = estimate(config, int(vocab_size) if vocab_size else None)
    console = Console(soft_wrap=True, highlight=False)
    console.print(_described(config))
    console.print(_table(memory))
    for line in (*_states(memory), *notes, verdict(memory.peak, device, own.get("device", ""))):
        console.print(line)
    return 0


def estimate(config: RunConfig, vocab_size: int | None = None) -> "tuple[Memory, tuple[str, ...]]":
    """Return the memory of the rank with the most optimizer state, and what had to be assumed.

    Raises ConfigError for a method that cannot be run without its data.
    """
    from pipelines.build import make_module
    from pipelines.logs import set_up_logs
    from pipelines.rehearsal import rehearse

    set_up_logs()
    rehearsal = make_module(config).rehearsal(config.data.config, vocab_size)
    if rehearsal is None:
        raise ConfigError(f"method={config.method}: cannot run without its data, so its memory cannot be told beforehand; "
                          "write fivefold train … trainer.fast_dev_run=true to try it")
    memory = rehearse(config, make_module(config), rehearsal)
    fullest = memory.states.index(max(memory.states))
    if memory.states[fullest] > memory.states[0]:
        memory = rehearse(config, make_module(config), rehearsal, fullest)
    return memory, rehearsal.notes


def device_bytes(text: str) -> int:
    """Read the memory of a device from its name or a size; ConfigError for anything else."""
    named = {name.lower(): size for name, size in DEVICES.items()}
    if text.lower() in named:
        return named[text.lower()] * 10**9
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(G|GB|GiB|M|MB|MiB)", text, re.IGNORECASE)
    if size is None or float(size[1]) == 0:
        raise ConfigError(f"device: neither a size such as 80GB nor a known name: '{text}'.{hint(text, DEVICES)} "
                          f"Names: {', '.join(DEVICES)}")
    unit = {"g": 10**9, "gb": 10**9, "gib": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20}[size[2].lower()]
    return round(float(size[1]) * unit)


def verdict(peak: int, device: int | None, name: str) -> str:
    """Say whether a peak fits a device, or which known devices it fits; without a device the GPU of this machine is taken, if any."""
    if device is None:
        import torch

        if torch.cuda.is_available():
            device, name = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    if device is None:
        enough = sorted({size for size in DEVICES.values() if peak <= TIGHT * size * 10**9})
        found = [name for name, size in DEVICES.items() if enough and size == enough[0]]
        if not found:
            return ("no known device has room: spread the weights (strategy=fsdp, more trainer.devices), lower data.batch_size, "
                    "or recompute activations")
        return f"the smallest known device with room: {', '.join(found)} ({enough[0]} GB)"
    if peak > device:
        return f"{name}: does not fit, {_gb(peak - device)} GB are missing"
    if peak > TIGHT * device:
        return f"{name}: tight, {_gb(device - peak)} GB are left for what is not counted, such as CUDA's context and fragmentation"
    return f"{name}: fits, {_gb(device - peak)} GB are left"


def _described(config: RunConfig) -> str:
    trainer, batch = config.trainer, getattr(config.data.config, "batch_size", None)
    processes = trainer.devices * trainer.num_nodes
    stage = f" stage {config.strategy.stage}" if config.strategy.name == "deepspeed" else ""
    each = f", {batch} sequences in a batch of each" if batch else ""
    count = f"{processes} process{'es' * (processes > 1)}"
    return (f"{config.experiment or config.method}: strategy {config.strategy.name}{stage}, {count}{each}, precision {trainer.precision}, "
            f"optimizer {config.choices.get('optim', config.optim.target)}")


def _table(memory: "Memory") -> Table:
    """Lay out the categories by the phases of a step; the phase with the peak is bold."""
    table = Table(box=None, pad_edge=False, title="GB on one device, when the most is in use", title_justify="left")
    table.add_column("")
    for phase in memory.phases:
        table.add_column(phase, justify="right", style="bold" if phase == memory.peak_phase else "")
    for category in memory.phases[memory.peak_phase]:
        table.add_row(category, *(_gb(parts[category]) for parts in memory.phases.values()))
    table.add_row("all", *(_gb(sum(parts.values())) for parts in memory.phases.values()), style="bold")
    return table


def _states(memory: "Memory") -> list[str]:
    if len(set(memory.states)) == 1:
        return []
    return [f"optimizer state: {_gb(min(memory.states))} to {_gb(max(memory.states))} GB, as matrices fall to the ranks; "
            f"above is rank {memory.rank}, which has the most"]


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}" if size >= 10**8 else f"{size / 1e9:.4f}"
