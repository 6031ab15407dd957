"""Run by torchrun: build FiraModules whose network is sharded before it has weights, and compare with one process.

Prints one JSON line a check on rank 0; test_weights.py reads them. Words: checks, and FOLDER=path of saved models.
"""

import json
import resource
import sys
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_modules.fira.module import FiraModule, FiraModuleConfig
from lightning_modules.language.network import Recipe, blocks_of, build

SEED = 5


def built(sharded, **config):
    """Build a module as Lightning would, around data that only has the properties asked for."""
    torch.manual_seed(SEED)
    module = FiraModule(FiraModuleConfig(**config), optimizer=None)
    facts = {"vocab_size": 97, "block_size": 16, "batch_size": 2, "eos_token_id": 0}
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(**facts), precision="32-true")
    if sharded:
        module._device_mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("data_parallel",))
    module.configure_model()
    return module


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(whole(one[key]), whole(two[key])) for key in one)


def compare(**config):
    """Weights, logits and gradients of the same batch on all processes, sharded and on one process."""
    alone, together = built(False, **{**config, "compile": False}), built(True, **config)
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
    logits, gradients = [], []
    for module in (alone, together):
        logits.append(module(tokens))
        logits[-1].square().mean().backward()
        gradients.append([whole(p.grad) for p in module.parameters()])
    return {
        "weights": equal(dict(alone.named_parameters()), dict(together.named_parameters())),
        "held": sum(p.to_local().numel() for p in together.parameters()) / sum(p.numel() for p in alone.parameters()),
        "logits": float((logits[0] - logits[1]).detach().abs().max()),
        "gradients": max(float((p - q).abs().max() / p.abs().max()) for p, q in zip(*gradients)),
        "random_numbers_left_alone": torch.initial_seed() == SEED,
    }


def compare_t5(pretrained=None):
    """Weights and logits of an encoder-decoder built on one process and on all."""
    recipe = Recipe("debug", pretrained, 97, 16, eos_token_id=1, pad_token_id=0, seq2seq=True)
    models = []
    for mesh in (None, init_device_mesh("cpu", (dist.get_world_size(),))):
        torch.manual_seed(SEED)
        model, give_weights = build(recipe, mesh)
        if mesh is not None:
            for part in (*blocks_of(model), model):
                fully_shard(part, mesh=mesh)
        give_weights()
        models.append(model)
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
    logits = [model(input_ids=tokens, decoder_input_ids=tokens).logits.detach() for model in models]
    return {"weights": equal(*(dict(model.named_parameters()) for model in models)), "logits": float((logits[0] - logits[1]).abs().max())}


def growth(**config):
    """Peak memory that building takes, as a share of the whole model's; on the process that takes most."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    module = built(True, **config)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    share = torch.tensor(grown / sum(4 * p.numel() for p in module.parameters()))
    dist.all_reduce(share, dist.ReduceOp.MAX)
    return {"share": float(share)}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    *checks, folder = sys.argv[1:]
    known = {
        "fresh": lambda: compare(size="debug"),
        "checkpointed": lambda: compare(size="debug", gradient_checkpointing=True),
        "compiled": lambda: compare(size="debug", compile=True, gradient_checkpointing=True),
        "pretrained": lambda: compare(pretrained=f"{folder}/model"),
        "tied": lambda: compare(pretrained=f"{folder}/tied"),
        "headless": lambda: compare(pretrained=f"{folder}/headless"),
        "unsafe": lambda: compare(pretrained=f"{folder}/unsafe"),
        "t5": lambda: compare_t5(),
        "pretrained t5": lambda: compare_t5(pretrained=f"{folder}/t5"),
        "growth": lambda: growth(size="130m"),
        "pretrained growth": lambda: growth(pretrained=f"{folder}/large"),
    }
    for check in checks:
        found = known[check]()
        if dist.get_rank() == 0:
            print(json.dumps({"check": check, **found}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
