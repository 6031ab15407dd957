"""Run by torchrun: save a trained model and its optimizers in parts, and go on from parts that others may have saved.

Prints one JSON line a check on rank 0; test_sharded.py reads them. Words: save=FOLDER, load=FOLDER and memory=FOLDER, in order. For
the last, the C library has to be told by MALLOC_MMAP_THRESHOLD_=65536 to keep tensors apart from other blocks.
"""

import ctypes
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from lightning_modules.optim.adamw import AdamW
from lightning_modules.optim.fira import Fira, FiraConfig
from pipelines.sharded import Parts, SavedStates, load_whole, save_parts
from tests.lightning_modules.optim.spread_worker import SAVED_AT, SETTINGS, SHAPES, STEPS, Rows, Whole, same_state, say


def folder_of(root, setting):
    return root / "checkpoints" / f"{setting}.ckpt"


def save(root):
    """Save each setting after 13 steps; the whole that rank 0 reads is what one process would have, and nothing was sent."""
    for setting, (kind, config) in SETTINGS.items():
        together = Rows(kind, config)
        together.train(0, SAVED_AT)
        sent, held = together.optimizer.exchange.sent, together.optimizer.held_state()
        checkpoint = {"state_dict": dict(together.module.named_parameters()), "optimizer_states": [held], "global_step": SAVED_AT}
        save_parts(checkpoint, folder_of(root, setting), dist.get_rank() == 0)
        kept = torch.tensor([sum(t.numel() for e in together.optimizer.entries.values() for t in e.values())])
        dist.all_reduce(kept, dist.ReduceOp.MAX)
        dist.barrier()
        alone = Whole(kind, config)
        alone.train(0, SAVED_AT)
        whole, state = load_whole(folder_of(root, setting)), alone.optimizer.state_dict()
        [saved] = whole.pop("optimizer_states")
        say("saved", setting=setting, rest=list(whole), sent=together.optimizer.exchange.sent - sent, most=int(kept),
            all=sum(t.numel() for e in state["state"].values() for t in e.values()), groups=saved["param_groups"] == state["param_groups"],
            weights=same_state({"": alone.weights()}, {"": whole["state_dict"]}), state=same_state(state["state"], saved["state"]))


def filled(layout, folder, config):
    """Make a model with other weights, and read the parts that this process needs."""
    kind = Fira if isinstance(config, FiraConfig) else AdamW
    together = layout(kind, config)
    with torch.no_grad():
        for p in together.module.parameters():
            p.fill_(7.0)
    parts = Parts(folder)
    parts.fill_weights(dict(together.module.named_parameters()), strict=True)
    together.optimizer.load_state_dict({**parts.rest()["optimizer_states"][0], "state": SavedStates(parts, 0, together.optimizer)})
    return together


def load(root):
    """Go on from each setting as one process would that had never stopped."""
    for setting, (kind, config) in SETTINGS.items():
        together = filled(Rows, folder_of(root, setting), config)
        together.train(SAVED_AT, STEPS)
        alone = Whole(kind, config)
        alone.train(0, STEPS)
        weights, state = together.weights(), together.optimizer.state_dict()["state"]
        say("went on", setting=setting, weights=same_state({"": alone.weights()}, {"": weights}),
            state=dist.get_rank() > 0 or same_state(alone.optimizer.state_dict()["state"], state))
    refuse(root)


def refuse(root):
    """Another rank begins anew with a warning on all processes; another optimizer and another model are refused on all."""
    folder = folder_of(root, "Fira official")
    with warnings.catch_warnings(record=True, action="always") as caught:
        filled(Rows, folder, FiraConfig(rank=3, gap=8))
    said = [str(w.message) for w in caught if "start anew" in str(w.message)]
    try:
        filled(Rows, folder, SETTINGS["AdamW"][1])
    except ValueError as error:
        said.append(str(error))
    SHAPES["another"] = (3, 3)
    try:
        filled(Rows, folder, FiraConfig(rank=4, gap=8))
    except RuntimeError as error:
        said.append(str(error))
    del SHAPES["another"]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    say("refused", said=everyone)


class MallInfo(ctypes.Structure):
    """The C library's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                                                     "fordblks", "keepcost")]


def growth(function):
    """Return by how many bytes in large blocks a call grows at its peak, seen every half millisecond."""
    ask, over, seen = ctypes.CDLL(None).mallinfo2, threading.Event(), []
    ask.restype = MallInfo

    def watch():
        while not over.is_set():
            seen.append(ask().hblkhd)
            time.sleep(0.0005)

    before, thread = ask().hblkhd, threading.Thread(target=watch)
    thread.start()
    kept = function()
    seen.append(ask().hblkhd)
    over.set()
    thread.join()
    del kept
    return max(seen) - before


def memory(root):
    """What saving takes on rank 0, in parts and gathered, as shares of weights and state together."""
    SHAPES.update({f"large{number}": (1500, 1000) for number in range(4)})
    together = Rows(*SETTINGS["AdamW"])
    module, optimizer = together.module, together.optimizer
    size = 3 * sum(p.numel() * 4 for p in module.parameters())

    def in_parts():
        checkpoint = {"state_dict": get_model_state_dict(module), "optimizer_states": [optimizer.held_state()]}
        save_parts(checkpoint, root / "memory.ckpt", dist.get_rank() == 0)

    def gathered():
        return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)), optimizer.state_dict()

    say("memory", parts=growth(in_parts) / size, gathered=growth(gathered) / size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for check, _, root in (word.partition("=") for word in sys.argv[1:]):
        {"save": save, "load": load, "memory": memory}[check](Path(root))
    dist.barrier()
    dist.destroy_process_group()
