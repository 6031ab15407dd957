"""Training the LLaMA: it learns, in every arithmetic, compiled or not, and with LoRA only the factors move."""

import math

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lightning_modules.base import OptimizerFactory
from lightning_modules.fira.module import FiraLoraSection, FiraModule, FiraModuleConfig
from lightning_modules.language.llama import new_llama
from lightning_modules.optim.fira import Fira, FiraConfig
from lightning_modules.optim.schedule import ScheduleConfig

VOCABULARY, BLOCK = 97, 16


class RandomTokens(LightningDataModule):
    """The same few batches of random tokens again and again, and others to validate on."""

    vocab_size, block_size, batch_size, eos_token_id, tokens_per_byte = VOCABULARY, BLOCK, 4, 0, 0.25

    def __init__(self, batches=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = torch.randint(VOCABULARY, (2, batches * self.batch_size, BLOCK + 1), generator=generator)

    def train_dataloader(self):
        return DataLoader([rows(block) for block in self.blocks[0]], self.batch_size)

    def val_dataloader(self):
        return DataLoader([rows(block) for block in self.blocks[1]], self.batch_size)


def rows(block):
    return {"input_ids": block[:-1], "labels": block[1:]}


def fit(config, data, steps, precision="32-true", **optim):
    """Train on the CPU and return the module and its trainer."""
    torch.manual_seed(0)
    schedule = ScheduleConfig(name="constant", warmup=0)
    module = FiraModule(config, OptimizerFactory(Fira, FiraConfig(**{"rank": 8, "gap": 10, "alpha": 1.0, "schedule": schedule, **optim})))
    trainer = Trainer(accelerator="cpu", precision=precision, max_steps=steps, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    return module, trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_one_batch_is_learned_by_heart_in_every_arithmetic(precision):
    _, trainer = fit(FiraModuleConfig(size="debug"), RandomTokens(), 150, precision, lr=0.01)
    assert trainer.callback_metrics["train/loss"] < 0.02


def test_in_pure_bfloat16_weights_are_short_but_rotary_frequencies_and_validation_sums_are_not():
    data = RandomTokens(batches=40)
    module, trainer = fit(FiraModuleConfig(size="debug"), data, 40, "bf16-true")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    frequencies = module.model.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.allclose(frequencies, torch.tensor([10000 ** (-2 * i / 16) for i in range(8)]), rtol=1e-6)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(mean_loss(module, data.val_dataloader()), rel=1e-6)


def mean_loss(module, batches):
    """Return the mean over all tokens, summed in float64 from one log-probability a token."""
    losses = []
    with torch.no_grad():
        for batch in batches:
            log_probabilities = torch.log_softmax(module(batch["input_ids"]).float(), -1)
            losses += (-log_probabilities.gather(-1, batch["labels"][..., None])).double().flatten().tolist()
    return math.fsum(losses) / len(losses)


@pytest.mark.slow
def test_a_compiled_model_trains_like_the_plain_one():
    trained = []
    for compiled in (False, True):
        torch._dynamo.reset()
        module, trainer = fit(FiraModuleConfig(size="debug", compile=compiled), RandomTokens(), 5, lr=0.01)
        trained.append((trainer.callback_metrics["train/loss"], trainer.callback_metrics["val/loss"], module.state_dict()))
        if compiled:
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    (plain_loss, plain_val, plain), (loss, val, compiled) = trained
    assert plain.keys() == compiled.keys()
    torch.testing.assert_close((loss, val), (plain_loss, plain_val), rtol=1e-4, atol=0)
    largest = max(float((compiled[name] - plain[name]).abs().max()) for name in plain)
    assert largest < 2e-3  # of 5 steps of up to 0.01 each


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(1)
    new_llama("debug", VOCABULARY, BLOCK).save_pretrained(tmp_path)
    return str(tmp_path)


def test_fira_on_lora_projects_and_trains_the_factors_only(pretrained):
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    config = FiraModuleConfig(pretrained=pretrained, lora=FiraLoraSection(rank=32, alpha=64.0, dropout=0.05, targets=targets))
    data = RandomTokens()
    module, trainer = fit(config, data, 60, lr=0.01, rank=16, gap=20)
    base = new_llama("debug", VOCABULARY, BLOCK).from_pretrained(pretrained).state_dict()
    frozen = {name.replace(".base_layer", ""): p for name, p in module.model.get_base_model().named_parameters() if "lora_" not in name}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(frozen[name], base[name]) for name in base)
    optimizer = trainer.optimizers[0]
    projected, = optimizer.param_groups  # nothing is left for plain Adam
    assert len(projected["params"]) == 2 * len(targets) * 2  # two factors a layer, two blocks
    assert all(optimizer.state[p]["basis"].shape == (32, 16) for p in projected["params"])
    assert all(float(p.detach().abs().max()) > 0 for p in projected["params"])  # B starts at 0
    assert trainer.callback_metrics["train/loss"] < 0.8 * math.log(VOCABULARY)  # of guessing; the frozen head allows no more so soon


def test_mixed_precision_keeps_frozen_weights_short_and_trains_the_factors_in_full(pretrained):
    config = FiraModuleConfig(pretrained=pretrained, lora=FiraLoraSection(rank=32))
    module, trainer = fit(config, RandomTokens(), 60, "bf16-mixed", lr=0.01, rank=16, gap=20)
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert trainer.callback_metrics["train/loss"] < 0.8 * math.log(VOCABULARY)


def test_the_checkpoint_of_an_adapter_holds_the_factors_only_and_gives_the_same_model_back(pretrained, tmp_path):
    config = FiraModuleConfig(pretrained=pretrained, lora=FiraLoraSection(rank=4))
    module, trainer = fit(config, RandomTokens(), 5, lr=0.01, rank=2)
    trainer.save_checkpoint(tmp_path / "adapter.ckpt")
    saved = torch.load(tmp_path / "adapter.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    again = FiraModule(config, module.optimizer)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(again, datamodule=RandomTokens(), ckpt_path=tmp_path / "adapter.ckpt", weights_only=True, verbose=False)
    tokens = torch.arange(BLOCK)[None]
    assert torch.equal(again.eval()(tokens), module.eval()(tokens))
