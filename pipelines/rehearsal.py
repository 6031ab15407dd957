"""A training step on tensors without memory: the real module, optimizer and strategy, for any number of processes, on any machine.

torch's FakeTensorMode computes shapes and types but no values, and its "fake" process group lets one process play any rank of many.
So FSDP2, the optimizers and their exchange run their own code here, and a ledger counts the bytes. DistributedDataParallel and
DeepSpeed ask for values; what they hold beside the module and its optimizer is added by arithmetic.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import _configure_optimizers
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import Parameter
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AutoConfig, PreTrainedModel

from lightning_modules.base import MethodModule, Rehearsal
from lightning_modules.optim.adamw import AdamW
from lightning_modules.optim.layout import Held, spread_later
from lightning_modules.optim.sharding import Spread, copies_of
from pipelines.build import stand_in_trainer
from pipelines.ledger import REST, Ledger
from pipelines.schema import RunConfig
from pipelines.zero_memory import Zero, chunks, stretches


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by phase of a step and by category, when the most is alive in that phase; optimizer state of all ranks."""

    rank: int
    phases: dict[str, dict[str, int]]
    states: list[int]

    @property
    def peak_phase(self) -> str:
        """The phase in which the most is alive."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> int:
        """Bytes at the highest point of the step."""
        return sum(self.phases[self.peak_phase].values())


def rehearse(config: RunConfig, module: MethodModule, rehearsal: Rehearsal, rank: int = 0) -> Memory:
    """Run one optimizer step of `module`, which must be new and is used up, as `rank` would run it."""
    world_size = config.trainer.devices * config.trainer.num_nodes
    with _playing(rank, world_size, alone=config.strategy.name == "single"):
        if config.strategy.name == "fsdp":
            module._device_mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("data_parallel",))
        return _rehearse(config, module, rehearsal, rank)


def _rehearse(config: RunConfig, module: MethodModule, rehearsal: Rehearsal, rank: int) -> Memory:
    batches = min(config.trainer.accumulate_grad_batches, 2)  # from the second on there are gradients beside the activations
    with _without_memory() as mode:
        step = _Step(config, module, rehearsal, mode)
        with step.ledger:
            step.build()
            states = step.states()
            for _ in range(batches):
                step.forward_and_backward()
            step.update()
        return Memory(rank, step.phases(), states)


@contextlib.contextmanager
def _playing(rank: int, world_size: int, alone: bool) -> Iterator[None]:
    """Play one rank of many; whatever is asked of all processes, this one answers for all."""
    if alone:
        yield
        return
    from torch.distributed._tools import fake_collectives  # noqa: F401 (tells the shapes that collectives return)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def answer_for_all(answers: list[Any], own: Any, group: Any = None) -> None:
        answers[:] = [own] * len(answers)

    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with mock.patch.object(dist, "all_gather_object", answer_for_all):
            yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _without_memory() -> Iterator[FakeTensorMode]:
    """Compute shapes only; pretrained networks are built from their config alone, and nothing is compiled.

    Modules may be moved and cast all the same. torch refuses that for tensors that something refers to weakly, as its own mode does.
    """
    def from_config(cls: Any, name: Any, config: Any = None, dtype: torch.dtype | None = None, **more: Any) -> nn.Module:
        return cls._from_config(config or AutoConfig.from_pretrained(name), dtype=dtype)

    unreferenced = SimpleNamespace(getweakrefs=lambda tensor: [])
    with (mock.patch.object(torch.utils, "weakref", unreferenced),
          mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_config)),
          mock.patch.object(nn.Module, "compile"),
          FakeTensorMode(allow_non_fake_inputs=True) as mode):
        yield mode


class _Step:
    """The parts of a training step, and the ledger that counts them."""

    def __init__(self, config: RunConfig, module: MethodModule, rehearsal: Rehearsal, mode: FakeTensorMode) -> None:
        self.config, self.module, self.rehearsal, self.mode = config, module, rehearsal, mode
        self.precision = precision_of(config)
        self.optimizers: list[AdamW] = []
        self.zero: Zero | None = None
        self.summed: dict[Tensor, Tensor] = {}  # parameter -> what ZeRO keeps of its gradient
        self.copies = 0  # bytes of DistributedDataParallel's buckets
        self.ledger = Ledger(self._gradients)

    def _gradients(self) -> list[Tensor]:
        held = {id(h.tensor): h.tensor for optimizer in self.optimizers for h in optimizer.held.values()}
        return [*self.summed.values(), *(tensor.grad for tensor in held.values() if tensor.grad is not None)]

    def build(self) -> None:
        """Make the network and its optimizers, spread as the strategy spreads them."""
        module, strategy = self.module, self.config.strategy.name
        module._trainer = stand_in_trainer(self.config, self.rehearsal.data)  # type: ignore[assignment]
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        with self.precision.module_init_context():
            module.configure_model()
            _take_memory(module, self.mode)
        self.ledger.mark("parameters", [*module.parameters(), *module.buffers()])
        with spread_later() if strategy in ("ddp", "deepspeed") else contextlib.nullcontext():
            self.optimizers = list(_configure_optimizers(module.configure_optimizers())[0])
        if strategy == "ddp":
            self._copy()
        elif strategy == "deepspeed":
            self._cut()
        for optimizer in self.optimizers:
            optimizer.finite = mock.Mock(skip=lambda *args, **kwargs: False)  # there are no values to judge
            self.ledger.mark("optimizer state", (value for entry in optimizer.entries.values() for value in entry.values()))

    def _copy(self) -> None:
        """Have whole weights everywhere, and all gradients a second time in DistributedDataParallel's buckets."""
        for optimizer in self.optimizers:
            optimizer.distribute([copies_of(name, shape, dist.get_world_size()) for name, shape in optimizer.shapes.items()], None)
        self.copies = sum(p.nbytes for p in self.module.parameters() if p.requires_grad)

    def _cut(self) -> None:
        """Give optimizers their part of float32 masters; gradients go as soon as they are there, to where DeepSpeed sums them."""
        stage, rank, world_size = self.config.strategy.stage, dist.get_rank(), dist.get_world_size()
        for optimizer in self.optimizers:
            spreads: list[Spread] = []
            held: dict[str, Held] = {}
            for group, names in zip(optimizer.param_groups, optimizer.names, strict=True):
                parts = (chunks if stage == 3 else stretches)([(name, optimizer.shapes[name]) for name in names], world_size)
                flat, first = Parameter(torch.zeros(sum(part.size(rank) for part in parts))), 0
                self.ledger.mark("parameters", [flat])
                group["params"] = [flat]
                for part in parts:
                    held[part.name] = Held(flat, slice(first, first + part.size(rank)))
                    first += part.size(rank)
                spreads += parts
            optimizer.distribute(spreads, None, held, stay=stage != 3)
        own = sum(group["params"][0].numel() for optimizer in self.optimizers for group in optimizer.param_groups)
        self.zero = Zero(self.module, stage, own, world_size)
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._sum_up)

    def _sum_up(self, parameter: Tensor) -> None:
        """Do with a gradient what ZeRO does."""
        assert self.zero is not None
        assert parameter.grad is not None
        if parameter not in self.summed:
            self.summed[parameter] = self.zero.kept_of(parameter.grad)
        parameter.grad = None

    def states(self) -> list[int]:
        """Return the bytes of optimizer state of each rank: whole matrices count where their owner is, all else by the share of it."""
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        found = [0] * world_size
        for optimizer in self.optimizers:
            exchange = optimizer.exchange
            types = {name: held.tensor.dtype for name, held in optimizer.held.items()}
            made = [(name, Parameter(torch.empty(shape, dtype=types[name]))) for name, shape in optimizer.shapes.items()]
            whole: Any = self.module.optimizer(made)
            for name, entry in whole.entries.items():
                owner = exchange.owners.get(name) if exchange else None
                for rank in range(world_size) if owner is None else [owner]:
                    share = exchange.spreads[name].size(rank) / exchange.spreads[name].count if exchange and owner is None else 1.0
                    found[rank] += sum(round(value.nbytes * (share if value.ndim else 1.0)) for value in entry.values())
        return found

    def forward_and_backward(self) -> None:
        """Take one batch forward and backward."""
        batch = tree_map_only(Tensor, self.mode.from_tensor, self.rehearsal.batch)
        self.ledger.phase = "forward"
        self.ledger.mark(REST, (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)))
        with self.precision.forward_context():
            loss: Any = self.module.training_step(batch, 0)
        self.ledger.phase = "backward"
        (loss["loss"] if isinstance(loss, dict) else loss).backward()
        if self.zero:
            self.ledger.mark("communication", self.zero.averaging(self.module))

    def update(self) -> None:
        """Make the optimizers' step, in which Fira looks for new bases."""
        self.summed.clear()
        self.ledger.phase = "optimizer step"
        for optimizer in self.optimizers:
            for group in optimizer.param_groups if self.zero else ():
                group["params"][0].grad = torch.zeros_like(group["params"][0])
            optimizer.step()

    def phases(self) -> dict[str, dict[str, int]]:
        """Return what was counted, and what the strategy holds beside it."""
        found = {phase: parts for phase, parts in self.ledger.peaks.items() if phase != "building"}
        for phase, parts in found.items():
            parts["communication"] += self.copies
            for category, size in (self.zero.extras(phase) if self.zero else {}).items():
                parts[category] += size
        return found


def precision_of(config: RunConfig) -> Precision:
    """Choose Lightning's plugin; DeepSpeed computes wholly in 16 bits where others mix, and float16 takes the room of bfloat16."""
    asked = config.trainer.precision
    if asked == "64-true":
        return DoublePrecision()
    if asked == "bf16-true" or (asked != "32-true" and config.strategy.name == "deepspeed"):
        return HalfPrecision("bf16-true")
    return Precision() if asked == "32-true" else MixedPrecision("bf16-mixed", "cpu")


def _take_memory(module: nn.Module, mode: FakeTensorMode) -> None:
    """Take the memory from networks that were made before the rehearsal began, and give them the default type."""
    made: dict[Parameter, Parameter] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and not isinstance(p, FakeTensor) and not hasattr(p, "placements"):
                if p not in made:
                    fake = mode.from_tensor(p.detach())
                    made[p] = Parameter(fake.to(torch.get_default_dtype()) if p.is_floating_point() else fake, p.requires_grad)
                part._parameters[name] = made[p]
