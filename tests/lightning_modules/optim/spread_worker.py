"""Run by torchrun: train the same weights with the same injected gradients on every layout, and compare with one process bit for bit.

Prints one JSON line a check on rank 0; tests/lightning_modules/optim/test_sharding.py reads them.
"""

import itertools
import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.layout import Held
from lightning_modules.optim.sharding import Spread, copies_of

SHAPES = {"a_attn": (64, 32), "b_attn": (5, 64), "c_mlp": (33, 17), "d_mlp": (48, 48), "e_mlp": (1, 5), "norm": (7,), "embedding": (11, 8)}
SETTINGS = {
    "Fira official": (Fira, FiraConfig(lr=0.01, rank=4, gap=8, weight_decay=0.01)),
    "Fira paper, subspace, staggered": (Fira, FiraConfig(lr=0.01, rank=4, gap=8, variant="paper", basis="subspace", refresh_stagger=True)),
    "Fira bfloat16 state": (Fira, FiraConfig(lr=0.01, rank=4, gap=8, state_dtype="bfloat16")),
    "GaLore randomized": (Fira, FiraConfig(lr=0.01, rank=4, gap=8, residual=False, basis="randomized")),
    "AdamW": (AdamW, AdamWConfig(weight_decay=0.1)),
}
STEPS, SAVED_AT = 25, 13


class Weights(nn.Module):
    """Bare parameters with seeded values."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=random)))


def gradients(step):
    random = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}


class Whole:
    """One process that holds everything."""

    def __init__(self, kind, config):
        self.module = Weights()
        self.optimizer = kind(self.module.named_parameters(), config)

    def give(self, values):
        for name, p in self.module.named_parameters():
            p.grad = None if values.get(name) is None else values[name].clone()

    def weights(self):
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def train(self, first, last):
        for step in range(first, last):
            self.give(gradients(step))
            self.optimizer.step()


class Copies(Whole):
    """Every process has all weights, as under DDP."""

    def __init__(self, kind, config):
        super().__init__(kind, config)
        self.optimizer.distribute([copies_of(name, shape, dist.get_world_size()) for name, shape in SHAPES.items()], None)


class Rows(Whole):
    """FSDP2."""

    def __init__(self, kind, config):
        self.module = Weights()
        fully_shard(self.module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.optimizer = kind(self.module.named_parameters(), config)

    def give(self, values):
        for name, p in self.module.named_parameters():
            p.grad = None if values.get(name) is None else distribute_tensor(values[name], p.device_mesh, p.placements)

    def weights(self):
        return {name: p.full_tensor().detach() for name, p in self.module.named_parameters()}


class ReplicatedRows(Rows):
    """FSDP2's HSDP: rows over each half of the processes, and the same rows in both halves."""

    def __init__(self, kind, config):
        self.module = Weights()
        fully_shard(self.module, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
        self.optimizer = kind(self.module.named_parameters(), config)


class Flat(Whole):
    """All parameters of a group in one line, cut into equal parts wherever that falls, as ZeRO-1 and ZeRO-2 do."""

    def __init__(self, kind, config):
        super().__init__(kind, config)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        self.flats, spreads, held = [], [], {}
        for group, names in zip(self.optimizer.param_groups, self.optimizer.names):
            total = sum(torch.Size(SHAPES[name]).numel() for name in names)
            part, offset = -(-total // world_size), 0
            values = [self.module.get_parameter(name).detach().reshape(-1) for name in names]
            line = torch.cat([*values, torch.zeros(part * world_size - total)])
            flat = line[rank * part : (rank + 1) * part].clone()
            group["params"] = [flat]
            self.flats.append((flat, names, part))
            for name in names:
                count = torch.Size(SHAPES[name]).numel()
                cuts = [min(max(r * part - offset, 0), count) for r in range(world_size + 1)]
                spreads.append(Spread(name, SHAPES[name], tuple(itertools.pairwise(cuts))))
                start = offset + cuts[rank] - rank * part if cuts[rank + 1] > cuts[rank] else 0
                held[name] = Held(flat, slice(start, start + cuts[rank + 1] - cuts[rank]))
                offset += count
        self.optimizer.distribute(spreads, None, held, stay=True)

    def give(self, values):
        for flat, names, part in self.flats:
            line = torch.cat([values[name].reshape(-1) for name in names])
            line = torch.cat([line, torch.zeros(part * dist.get_world_size() - line.numel())])
            flat.grad = line[dist.get_rank() * part :][:part].clone()

    def weights(self):
        found = {}
        for flat, names, part in self.flats:
            parts = [torch.empty(part) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, flat)
            counts = [torch.Size(SHAPES[name]).numel() for name in names]
            pieces = torch.cat(parts)[: sum(counts)].split(counts)
            found.update({name: piece.view(SHAPES[name]) for name, piece in zip(names, pieces)})
        return found

    def start_from(self, weights):
        for name, held in self.optimizer.held.items():
            held.weight.copy_(weights[name].reshape(-1)[slice(*self.optimizer.exchange.spreads[name].intervals[dist.get_rank()])])


def same_state(one, two):
    entries = [(one[name], two[name]) for name in one] if one.keys() == two.keys() else [({"": None}, {})]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in entries)


def say(check, **facts):
    if dist.get_rank() == 0:
        print(json.dumps({"check": check, **facts}), flush=True)


def compare_all():
    """Weights and whole saved state after 25 steps with refreshes, on every layout; and a run that changes its layout on the way."""
    for setting, (kind, config) in SETTINGS.items():
        alone = Whole(kind, config)
        alone.train(0, SAVED_AT)
        half_state, half_weights = alone.optimizer.state_dict(), alone.weights()
        alone.train(SAVED_AT, STEPS)
        for layout in (Copies, Rows, Flat, *([ReplicatedRows] if dist.get_world_size() == 4 else [])):
            together = layout(kind, config)
            together.train(0, STEPS)
            weights, state = together.weights(), together.optimizer.state_dict()
            equal = all(torch.equal(weights[name], value) for name, value in alone.weights().items())
            state_equal = dist.get_rank() > 0 or same_state(state["state"], alone.optimizer.state_dict()["state"])
            say("bitwise", setting=setting, layout=layout.__name__, weights=equal, state=state_equal)
        flat = Flat(kind, config)
        flat.start_from(half_weights)
        flat.optimizer.load_state_dict(half_state)
        flat.train(SAVED_AT, STEPS)
        weights = flat.weights()
        say("changed layout", setting=setting, weights=all(torch.equal(weights[name], value) for name, value in alone.weights().items()))


def share_out():
    """Each process keeps about its share of the state, and sends at most twice its share of the gradients."""
    together = Rows(Fira, FiraConfig(rank=4, gap=8))
    together.train(0, 1)
    optimizer = together.optimizer
    kept = torch.tensor([sum(t.numel() for name in optimizer.offsets for t in optimizer.entries[name].values())])
    everyone = [torch.zeros_like(kept) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, kept)
    say("shares", kept=[int(k) for k in everyone], sent=optimizer.exchange.sent, owners=sorted(set(optimizer.exchange.owners.values())))


def one_bad_gradient(policy):
    """The last process alone has a NaN; then it alone has no gradient at all."""
    together = Copies(Fira, FiraConfig(rank=4, gap=8, nonfinite=policy))
    together.train(0, 2)
    before = together.weights()
    values = gradients(2)
    if dist.get_rank() == dist.get_world_size() - 1:
        values["c_mlp"][0, 0] = float("nan")
    together.give(values)
    message = ""
    try:
        together.optimizer.step()
    except FloatingPointError as error:
        message = str(error)
    messages = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    untouched = all(torch.equal(value, before[name]) for name, value in together.weights().items())
    values = gradients(3)
    if dist.get_rank() == dist.get_world_size() - 1:
        values["d_mlp"] = None
    together.give(values)
    together.optimizer.step()
    say("bad gradient", policy=policy, messages=messages, untouched=untouched)


def different_parameters():
    """Rank 1 has another shape: nobody may start."""
    shapes = {**SHAPES, "a_attn": (64, 33)} if dist.get_rank() == 1 else SHAPES
    optimizer = Fira(Weights().named_parameters(), FiraConfig(rank=4))
    try:
        optimizer.distribute([copies_of(name, shape, dist.get_world_size()) for name, shape in shapes.items()], None)
        message = ""
    except RuntimeError as error:
        message = str(error)
    say("different parameters", message=message)


def shards_of_columns():
    """Matrices cut along their columns, as tensor parallelism leaves them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    columns = [(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(1)])))
               for name, p in Weights().named_parameters() if p.ndim == 2]
    try:
        Fira(columns, FiraConfig(rank=4))
        message = ""
    except ValueError as error:
        message = str(error)
    say("columns", message=message)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for check in sys.argv[1:]:
        {"compare": compare_all, "shares": share_out, "raise": lambda: one_bad_gradient("raise"), "skip": lambda: one_bad_gradient("skip"),
         "different": different_parameters, "columns": shards_of_columns}[check]()
    dist.barrier()
    dist.destroy_process_group()
