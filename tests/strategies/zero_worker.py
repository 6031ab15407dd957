"""Run by torchrun: train a small LLaMA under DeepSpeed ZeRO on CPUs, and compare with one process on the same global batches.

Prints one JSON line a check on rank 0; tests/test_zero.py reads them. The network has a tied head, a frozen norm and a buffer that
changes, so that checkpoints have all kinds of entries.
"""

import gc
import importlib
import json
import os
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.base import OptimizerFactory
from lightning_modules.fira.module import FiraModule, FiraModuleConfig
from lightning_modules.language.llama import new_llama
from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.schedule import ScheduleConfig, make_schedule
from pipelines.loss_scale import SCALER
from pipelines.strategies import Copies, Shards
from pipelines.zero_strategy import Zero

STEPS, SAVED_AT, SEQUENCES, LENGTH, WORDS = 8, 5, 12, 16, 97
RANK, PROCESSES = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SLOPE = ScheduleConfig("linear", warmup=2)
OPTIMIZERS = {
    "fira": (Fira, FiraConfig(lr=0.01, rank=8, gap=3, weight_decay=0.01)),
    "adamw": (AdamW, AdamWConfig(lr=0.003, weight_decay=0.1)),
}
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False, "use_distributed_sampler": False}


class Record:
    """Mixed into an optimizer: keeps on rank 0 the whole gradients that it is given under ZeRO, and the weights before the first step."""

    def step(self, closure=None):
        present = {id(p) for group in self.param_groups for p in group["params"]}
        zero = closure is None and self.exchange is not None
        here = {name: held for name, held in self.held.items() if zero and id(held.tensor) in present}
        if here:
            if not self.rounds or here.keys() <= self.rounds[-1].keys():  # ZeRO steps through its groups one by one
                self.rounds.append({})
            rates, gradients = self.rates(), self.collected({name: held.gradient for name, held in here.items()})
            self.rounds[-1].update({name: (rates[name], gradient) for name, gradient in gradients.items()})
            if len(self.rounds) == 1:
                self.start.update(self.collected({name: held.weight for name, held in here.items()}))
        return super().step(closure)

    def collected(self, pieces):
        """Put the pieces of all processes together on rank 0, in one exchange; elsewhere return the pieces."""
        everyone = [None] * PROCESSES if RANK == 0 else None
        dist.gather_object({name: piece.reshape(-1).clone() for name, piece in pieces.items()}, everyone)
        return {name: torch.cat([some[name] for some in everyone]).view(self.shapes[name]) for name in pieces} if everyone else pieces


class Language(L.LightningModule):
    """Predicts tokens of the batch that belongs to the present step; each process takes its share of the sequences."""

    def __init__(self, optimizer, share=(0, 1), spoilt_at=None, nonfinite="raise"):
        super().__init__()
        kind, config = OPTIMIZERS[optimizer]
        self.kind = type(kind.__name__, (Record, kind), {"rounds": [], "start": {}})
        self.settings = replace(config, nonfinite=nonfinite)
        self.share, self.spoilt_at = share, spoilt_at
        self.network, self.losses = None, []

    def configure_model(self):
        if self.network is not None:
            return
        torch.manual_seed(0)
        self.network = new_llama("debug", WORDS, LENGTH)
        self.network.lm_head.weight = self.network.model.embed_tokens.weight
        self.network.model.norm.weight.requires_grad_(False)
        self.network.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.network.model.embed_tokens.register_forward_hook(self.spoil)
        if self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def spoil(self, layer, inputs, output):
        """Make the gradient of the embedding, and of nothing else, NaN."""
        if self.trainer.training and self.trainer.global_step == self.spoilt_at:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def loss(self, step, part=0, parts=1):
        tokens = torch.randint(WORDS, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        tokens = tokens.chunk(parts)[part].chunk(self.share[1])[self.share[0]]
        logits = self.network(input_ids=tokens[:, :-1]).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, _, index):
        step, parts = self.trainer.global_step, self.trainer.accumulate_grad_batches
        loss = self.loss(step, index % parts, parts)
        self.network.batches += 1
        self.losses.append(loss.item())
        return loss

    def validation_step(self, _, index):
        self.log("val/loss", self.loss(1000), sync_dist=True)

    def configure_optimizers(self):
        self.made = optimizer = self.kind([(name, p) for name, p in self.named_parameters() if p.requires_grad], self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make_schedule(optimizer, SLOPE, STEPS), "interval": "step"}}


def strategy_of(stage, clip):
    """Make ZeRO of a stage, or another strategy by its name; stage 0 is one process."""
    others = {0: lambda: SingleDeviceStrategy("cpu"), "ddp": Copies,
              "fsdp": lambda: Shards(data_parallel_size=PROCESSES, tensor_parallel_size=1)}
    return others[stage]() if stage in others else Zero(stage, clip, "cpu")


def make(stage, optimizer, clip=None, same=False, zero=(), search=(), **more):
    """Make a module and a trainer with a strategy, with DeepSpeed's options `zero`, and with a `search` for the loss scale."""
    extra = {key: more.pop(key) for key in ("spoilt_at", "nonfinite") if key in more}
    module = Language(optimizer, (0, 1) if same or not stage else (RANK, PROCESSES), **extra)
    strategy = strategy_of(stage, clip)
    if stage and zero:
        strategy.config["zero_optimization"].update(zero)
    vars(strategy).update(search)
    return module, L.Trainer(strategy=strategy, devices=PROCESSES if stage else 1, gradient_clip_val=clip, **QUIET, **more)


def fit(stage, optimizer, resumed=None, saved=None, max_steps=STEPS, length=1000, **more):
    """Train; return module, trainer and a checkpoint, which is whole on rank 0 only. Other ranks stay idle in stage 0."""
    if RANK and not stage:
        return None, None, None
    module, trainer = make(stage, optimizer, max_steps=max_steps, **more)
    trainer.fit(module, DataLoader(range(length)), ckpt_path=resumed, weights_only=True if resumed else None)
    if saved:
        trainer.save_checkpoint(saved)
    return module, trainer, trainer._checkpoint_connector.dump_checkpoint()


def difference(one, two):
    """Return the largest difference of two checkpoints' weights and of their optimizer states; refuse others than of the same form."""
    ours, theirs = one["optimizer_states"][0], two["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"], (ours["param_groups"], theirs["param_groups"])
    return {"weights": largest(one["state_dict"], two["state_dict"]), "state": largest(ours["state"], theirs["state"])}


def largest(one, two):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        return max((largest(one[key], two[key]) for key in one), default=0.0)
    assert (one.dtype, one.shape, one.device) == (two.dtype, two.shape, two.device)
    return float((one.double() - two.double()).abs().max())


def replayed(module, checkpoint):
    """Give the recorded gradients to the same optimizer on one process; tell whether weights and state are the same bits."""
    record, (kind, config) = module.made, (module.kind.__mro__[2], module.settings)
    named = [(name, Parameter(value.clone())) for name, value in record.start.items()]
    alone = kind(named, config)
    for one in record.rounds:
        for group, names in zip(alone.param_groups, alone.names):
            group["lr"] = one[names[0]][0]
        for name, p in named:
            p.grad = one[name][1].clone()
        alone.step()
    weights = all(torch.equal(p, checkpoint["state_dict"][name]) for name, p in named)
    entries = {name: entry for names in [[n for some in alone.names for n in some]]
               for name, entry in zip(names, checkpoint["optimizer_states"][0]["state"].values())}
    return len(record.rounds), weights and all(torch.equal(entries[name][key], value)
                                               for name, _ in named for key, value in alone.entries[name].items())


def report(check, **figures):
    if RANK == 0:
        print(json.dumps({"check": check, **figures}), flush=True)


def against_one_process(name, stages, optimizer, batches=1, **more):
    """Compare stages with one process that sees the same sequences in each step."""
    alone, _, expected = fit(0, optimizer, accumulate_grad_batches=batches, **more)
    for stage in stages:
        module, trainer, checkpoint = fit(stage, optimizer, accumulate_grad_batches=batches, **more)
        everyone = [None] * PROCESSES
        dist.all_gather_object(everyone, module.losses)
        if alone:
            seen, wanted = torch.tensor(everyone).mean(0), torch.tensor(alone.losses)
            rounds, bitwise = replayed(module, checkpoint)
            report(name, stage=stage, wrapper=type(trainer.optimizers[0]).__name__, loss=float((seen - wanted).abs().max()),
                   moved=largest(module.made.start, {n: checkpoint["state_dict"][n] for n in module.made.start}),
                   rounds=rounds, bitwise=bitwise, **difference(checkpoint, expected))


def spoilt(stage, nonfinite, precision="32-true"):
    """Let one gradient of the last process be NaN at one step."""
    message, steps, finite = "", None, None
    try:
        _, _, checkpoint = fit(stage, "fira", spoilt_at=3 if RANK == PROCESSES - 1 else None, nonfinite=nonfinite,
                               precision=precision)
        if RANK == 0:
            steps = int(checkpoint["optimizer_states"][0]["state"][0]["step"])
            finite = all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())
    except FloatingPointError as error:
        message = str(error)
    everyone = [None] * PROCESSES
    dist.all_gather_object(everyone, message)
    report(f"spoilt {nonfinite} {precision}", stage=stage, messages=everyone, finite=finite, steps=steps)


class Facts(L.LightningDataModule):
    """What the language model asks of its data."""

    vocab_size, block_size, batch_size, eos_token_id = WORDS, LENGTH, 2, 0

    def train_dataloader(self):
        return DataLoader(range(10))


class Measured(Zero):
    """Measures how far memory grows while the network is built, as a share of its float32 weights."""

    @contextmanager
    def model_sharded_context(self):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with super().model_sharded_context():
            yield
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        self.share = torch.tensor(grown / sum(4 * getattr(p, "ds_numel", p.numel()) for p in self.lightning_module.parameters()))
        dist.all_reduce(self.share, dist.ReduceOp.MAX)


def build(stage, precision="32-true", **config):
    """Build the language model of the Fira method; return its trainer and a checkpoint from before the first step."""
    if RANK and not stage:
        return None, None
    L.seed_everything(7, verbose=False)
    strategy = Measured(stage, None, "cpu") if stage else SingleDeviceStrategy("cpu")
    module = FiraModule(FiraModuleConfig(**config), OptimizerFactory(*OPTIMIZERS["fira"]))
    trainer = L.Trainer(strategy=strategy, devices=PROCESSES if stage else 1, precision=precision, max_steps=0, **QUIET)
    trainer.fit(module, datamodule=Facts())
    return trainer, trainer._checkpoint_connector.dump_checkpoint()


def saved_model(folder, tied):
    """Save a model in several files; return its folder."""
    if RANK == 0:
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **shape, tie_word_embeddings=tied)).save_pretrained(folder, max_shard_size="20KB")
    dist.barrier()
    return str(folder)


def built(name, stages=(1, 2, 3), precision="32-true", **config):
    """Compare fresh or pretrained weights, of which stage 3 never has the whole, with those of one process."""
    _, expected = build(0, **config)
    for stage in stages:
        trainer, checkpoint = build(stage, precision, **config)
        if RANK == 0:
            difference = largest(checkpoint["state_dict"], expected["state_dict"])
            report(name, stage=stage, weights=difference, share=float(trainer.strategy.share))


def float16(folder, stage):
    """Stop and go on during the search for the loss scale; also tell what torch's own scaler makes of what is saved."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    importlib.import_module("deepspeed.accelerator").get_accelerator().is_fp16_supported = lambda: True  # slowly, it is
    more = {"precision": "16-mixed", "search": {"initial_scale_power": 22, "loss_scale_window": 2, "hysteresis": 2}}
    path, end = folder / "part.ckpt", folder / "end.ckpt"
    _, _, expected = fit(stage, "fira", saved=folder / "whole.ckpt", **more)
    fit(stage, "fira", saved=path, max_steps=SAVED_AT, **more)
    _, _, after = fit(stage, "fira", resumed=path, saved=end, **more)
    dist.barrier()
    if RANK == 0:
        scales = [torch.load(some, weights_only=True)[SCALER] for some in (path, folder / "whole.ckpt", end)]
        scaler = torch.amp.GradScaler("cpu")
        scaler.load_state_dict(scales[0])
        steps = int(after["optimizer_states"][0]["state"][0]["step"])
        report("float16", stage=stage, scales=scales, torch=scaler.get_scale(), steps=steps, **difference(after, expected))


def resume(path, stage):
    """Go on from a checkpoint; compare with what was saved, and with a run that never stopped: the same one if it was the same stage."""
    same = path.name == f"stage{stage}.ckpt"
    _, _, expected = fit(stage if same else 0, "fira")
    _, _, loaded = fit(stage, "fira", resumed=path, max_steps=SAVED_AT)
    _, trainer, after = fit(stage, "fira", resumed=path)
    _, _, coarse = fit(stage, "fira", resumed=path, max_steps=SAVED_AT, precision="bf16-mixed")
    if RANK == 0:
        saved = torch.load(path, weights_only=True)
        report("as saved under bf16-mixed", stage=stage, file=path.name, step=coarse["global_step"], **difference(coarse, saved))
        report("as saved", stage=stage, file=path.name, step=loaded["global_step"], **difference(loaded, saved))
        report("went on alike" if same else "went on", stage=stage, file=path.name, step=trainer.global_step, **difference(after, expected))


def evaluate(path, stage):
    """Validate a checkpoint without training, and after training in the same process; both as one process does."""
    loader = DataLoader(range(1))
    module, trainer = make(stage, "fira", max_steps=SAVED_AT)
    fresh = trainer.validate(module, loader, ckpt_path=path, weights_only=True, verbose=False)
    _, trainer, _ = fit(stage, "fira", resumed=path, max_steps=SAVED_AT)
    after = trainer.validate(trainer.lightning_module, loader, verbose=False)
    if RANK == 0:
        module, trainer = make(0, "fira")
        alone = trainer.validate(module, loader, ckpt_path=path, weights_only=True, verbose=False)
        fresh, after, alone = (some[0]["val/loss"] for some in (fresh, after, alone))
        report("evaluated", stage=stage, loss=alone, fresh=abs(fresh - alone), after=abs(after - alone))


def run(folder, check, *words):
    """Make one check; `words` are a stage, and a file's name before it where one is read."""
    if check == "compare":
        against_one_process("same batch", (1, 2, 3), "fira", same=True)
        against_one_process("accumulated, clipped", (1, 2, 3), "fira", batches=2, clip=0.5)
        against_one_process("cut windows, clipped", (1, 2, 3), "adamw", batches=2, clip=0.5, length=3)
        against_one_process("other order", (2,), "fira", zero={"round_robin_gradients": True})
        against_one_process("small groups", (3,), "fira", zero={"sub_group_size": 20_000})
    elif check == "bf16":
        against_one_process("bf16-mixed", (1, 2, 3), "fira", batches=2, precision="bf16-mixed")
    elif check == "spoilt":
        for stage in ("ddp", "fsdp", 1, 2, 3):
            spoilt(stage, "raise")
        for stage in (1, 3):
            spoilt(stage, "skip")
        spoilt(1, "raise", "bf16-mixed")
    elif check == "built":
        built("fresh", size="debug")
        built("fresh, rounded", size="debug", precision="bf16-mixed")
        built("pretrained", stages=(3,), pretrained=saved_model(folder / "model", tied=False))
        built("tied, rounded", stages=(3,), pretrained=saved_model(folder / "tied", tied=True), precision="bf16-mixed")
    elif check == "large":
        built("large", size="130m", stages=(3,))
    elif check == "float16":
        float16(folder, int(words[0]))
    elif check == "save":
        fit(int(words[0]), "fira", max_steps=SAVED_AT, saved=folder / f"stage{words[0]}.ckpt")
        dist.barrier()
    else:
        {"resume": resume, "evaluate": evaluate}[check](folder / words[0], int(words[1]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in sys.argv[2:]:
        gc.freeze()  # DeepSpeed collects garbage six times a start, which takes seconds with all that is imported
        run(Path(sys.argv[1]), *one.split(":"))
    dist.barrier()
    dist.destroy_process_group()
