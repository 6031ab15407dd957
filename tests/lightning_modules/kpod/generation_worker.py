"""Run by torchrun on several processes: each generates for its share of the questions, with whole and with spread weights.

Prints one JSON line a check on rank 0: the gathered texts, and how many rows and forward passes each process had.
"""

import importlib
import json
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from students import generator_of, lively, prompt_batches
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_modules.kpod.generation import gather_texts
from lightning_modules.language.network import blocks_of
from lightning_modules.language.parts import sharded


def spread(model, how):
    """Give FSDP2 or DeepSpeed's ZeRO-3 the weights of a network."""
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    if how == "zero3":
        import deepspeed

        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # would compile an extension for what gloo does too
        engine, *_ = deepspeed.initialize(model=model, dist_init_required=False, config={
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
        assert engine.module is model
    assert sharded(model) == (how != "whole")
    return model


def check(kind, how):
    model = spread(lively(kind), how)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    generate = generator_of(kind, model)
    texts = [pair for batch in prompt_batches(kind, dist.get_rank(), dist.get_world_size()) for pair in generate(batch)]
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, (len(texts), len(passes)))
    found = gather_texts(texts)
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    assert all(other == found for other in everywhere)
    rows, forwards = zip(*counts)
    return {"check": f"{kind} {how}", "texts": found, "rows": rows, "forwards": forwards}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for words in sys.argv[1:]:
        report = check(*words.split())
        if dist.get_rank() == 0:
            print(json.dumps(report), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is told; threads of gloo under DeepSpeed have been seen to abort a process that was at its end


if __name__ == "__main__":
    main()
