"""Run by torchrun on two processes: gradients of one window of two batches a process, and of all four rows on one process."""

import json
from datetime import timedelta

import torch
import torch.distributed as dist
from students import student, tokens
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.kpod.loss import distillation_loss

ACCUMULATE, ACTIVE = 2, (11, 2, 5, 1)  # target tokens of the four rows


def rows(which):
    """Rows of the window with their labels and weights; row i has ACTIVE[i] targets at its end."""
    text = tokens(4, 13)
    labels = text[:, 1:].clone()
    for row, active in enumerate(ACTIVE):
        labels[row, :-active] = -100
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    return [part[which] for part in (text[:, :-1], labels, weights)]


def gradients(model, batches, total, scale):
    """Accumulate as Lightning does: each loss is divided by the number of batches, gradients are averaged at the last one."""
    model.zero_grad()
    for number, which in enumerate(batches):
        text, labels, weights = rows(which)
        model.require_backward_grad_sync = number == len(batches) - 1
        divisor = (labels != -100).sum() if total is None else total
        (distillation_loss(model(input_ids=text).logits, labels, weights, divisor, scale)[0] / len(batches)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world, total = dist.get_rank(), dist.get_world_size(), sum(ACTIVE)
    alone = gradients(student("llama"), [[0, 1, 2, 3]], total, 1)
    mine = [[2 * batch + rank] for batch in range(ACCUMULATE)]
    model = DistributedDataParallel(student("llama"))
    ours = gradients(model, mine, total, world * ACCUMULATE)
    local = gradients(model, mine, None, 1)
    report = {name: float((found - alone).abs().max() / alone.abs().max())
              for name, found in (("ours", ours), ("mean of each process and batch", local))}
    if rank == 0:
        print(json.dumps(report), flush=True)
    del model  # before the group: as its last owner, DDP would wait for a gloo thread that waits for Python, now and then for ever
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
