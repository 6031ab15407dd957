"""The estimate of memory against what torch's allocator really gives out, against the optimizer's own state, and against closed forms."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_modules.base import MethodModule, OptimizerFactory, Rehearsal
from lightning_modules.optim.adamw import AdamW, AdamWConfig
from pipelines.build import make_module, stand_in_trainer
from pipelines.config import ConfigError, compose
from pipelines.estimate import device_bytes, estimate, verdict
from pipelines.ledger import REST
from pipelines.rehearsal import precision_of, rehearse

BASE = {"experiment": "fira_debug", "module.size": "tiny", "data.vocab_size": "2048", "data.block_size": "64", "optim.rank": "32"}


def words_of(*changes):
    given = {key: value for key, _, value in (word.partition("=") for word in changes)}
    base = {key: value for key, value in BASE.items() if not (key == "optim.rank" and given.get("optim") == "adamw")}
    return [f"{key}={value}" for key, value in {**base, **given}.items()]


def config_of(*changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compose(words_of(*changes), "estimate")


def allocated(profiler):
    """Return how much torch's allocator had given out at the end and at most, relative to the beginning."""
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            now += event.nbytes()
            peak = max(peak, now)
    return now, peak


def measured(config):
    """Build the module with memory and take a real step; return the peak, and the bytes of the optimizer's state."""
    rehearsal = make_module(config).rehearsal(config.data.config, None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as building:
        module = make_module(config)
        module._trainer = stand_in_trainer(config, rehearsal.data)
        module.log = lambda *args, **kwargs: None
        with precision_of(config).module_init_context():
            module.configure_model()
        optimizer = module.configure_optimizers()["optimizer"]
    held, _ = allocated(building)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as stepping:
        for _ in range(config.trainer.accumulate_grad_batches):
            with precision_of(config).forward_context():
                loss = module.training_step(rehearsal.batch, 0)
            loss.backward()
            del loss
        optimizer.step()
    state = sum(value.nbytes for entry in optimizer.entries.values() for value in entry.values())
    return held + allocated(stepping)[1], state


@pytest.mark.parametrize("words", [
    "data.batch_size=8",
    "data.batch_size=2 optim=adamw trainer.precision=bf16-mixed",
    "data.batch_size=1 trainer.precision=bf16-true optim.rank=8",
    "data.batch_size=8 trainer.precision=bf16-mixed module.gradient_checkpointing=true trainer.accumulate_grad_batches=2",
    "data.batch_size=2 trainer.precision=64-true",
    "data.batch_size=1 module.size=small data.block_size=16",
])
def test_the_peak_is_within_a_tenth_of_what_is_measured_and_state_is_exact(words):
    config = config_of(*words.split())
    peak, state = measured(config)
    memory, notes = estimate(config)
    print(f"{words}: estimated {memory.peak / 1e6:.2f} MB, measured {peak / 1e6:.2f} MB ({100 * (memory.peak / peak - 1):+.2f} %)")
    assert memory.peak == pytest.approx(peak, rel=0.1)
    assert memory.states == [state] == [memory.phases["forward"]["optimizer state"]]
    assert notes == ()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [
    ("ddp", "32-true"), ("fsdp", "32-true"), ("fsdp", "bf16-mixed"), ("deepspeed strategy.stage=1", "bf16-mixed"),
    ("deepspeed strategy.stage=2", "32-true"), ("deepspeed strategy.stage=3", "bf16-mixed"),
])
def test_the_peak_of_two_processes_is_within_a_tenth_of_what_is_measured(strategy, precision, cache):
    words = words_of("module.size=60m", f"data.cache={cache}", "data.batch_size=8", "optim.basis=randomized", "trainer.max_steps=2",
                     "trainer.devices=2", f"trainer.precision={precision}", *f"strategy={strategy}".split())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(Path(__file__).with_name("peak_worker.py")), *words]
    large_blocks_apart = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **large_blocks_apart})
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    memory, _ = estimate(config_of(*words))
    peak = max(report["peak"] for report in reports)
    error = 100 * (memory.peak / peak - 1)
    print(f"{strategy} {precision}: estimated {memory.peak / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB ({error:+.1f} %)")
    assert memory.peak == pytest.approx(peak, rel=0.1)
    assert {report["rank"]: report["state"] for report in reports} == dict(enumerate(memory.states))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed strategy.stage=1", "deepspeed strategy.stage=3"])
def test_each_rank_holds_the_state_that_is_told_of_it_and_together_they_hold_it_all(strategy):
    config = config_of(*f"module.size=debug strategy={strategy} trainer.devices=3".split())
    rehearsal = make_module(config).rehearsal(config.data.config, None)
    ranks = [rehearse(config, make_module(config), rehearsal, rank) for rank in range(3)]
    assert [memory.phases["backward"]["optimizer state"] for memory in ranks] == ranks[0].states
    assert ranks[0].states == ranks[1].states == ranks[2].states
    alone, _ = estimate(config_of("module.size=debug"))
    if strategy == "ddp":  # where weights are not spread, all keep the state of what is not projected
        assert sum(ranks[0].states) > alone.states[0]
    else:
        assert sum(ranks[0].states) == pytest.approx(alone.states[0], rel=0.001)


class Pair(MethodModule):
    """Two linear layers with tied weights, made at once: a method whose bytes can be counted by hand."""

    def __init__(self, config: AdamWConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.first, self.second = nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False)
        self.second.weight = self.first.weight

    def training_step(self, batch, batch_idx):
        return self.second(self.first(batch)).sum()


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("64-true", 8), ("bf16-true", 2)])
def test_a_network_that_exists_already_is_counted_by_hand(precision, size):
    config = config_of(f"trainer.precision={precision}", "trainer.max_steps=2")
    dtype = {4: torch.float32, 8: torch.float64, 2: torch.bfloat16}[size]
    module = Pair(AdamWConfig(), OptimizerFactory(AdamW, AdamWConfig()))
    memory = rehearse(config, module, Rehearsal(None, torch.zeros(50, 300, dtype=dtype)))
    weight, rows = 300 * 300, 50 * 300 * size
    assert memory.phases["forward"]["parameters"] == size * weight
    assert memory.phases["optimizer step"]["gradients"] == size * weight
    assert memory.states == [2 * max(size, 4) * weight + 4]  # two moments and a counter
    assert memory.phases["forward"][REST] == pytest.approx(3 * rows, abs=64)  # input, hidden and output; the sum is a number


def test_sharding_a_7b_model_divides_weights_and_gradients():
    config = config_of("module.size=7b", "trainer.precision=bf16-true", "strategy=fsdp", "trainer.devices=64", "data.batch_size=1",
                       "module.gradient_checkpointing=true")
    memory, _ = estimate(config)
    block = 4 * 4096**2 + 3 * 4096 * 11008
    numbers = 2 * 2048 * 4096 + 32 * (block + 2 * 4096) + 4096
    assert memory.phases["forward"]["parameters"] == pytest.approx(2 * numbers / 64, rel=0.001)
    assert memory.phases["optimizer step"]["gradients"] == pytest.approx(2 * numbers / 64, rel=0.001)
    assert memory.phases["backward"]["communication"] > 2 * block  # a block is gathered whole


def test_recomputing_activations_and_smaller_batches_need_less():
    def activations(*words):
        return max(parts[REST] for parts in estimate(config_of(*words))[0].phases.values())

    plain = activations("data.batch_size=4")
    assert activations("data.batch_size=4", "module.gradient_checkpointing=true") < 0.7 * plain
    assert activations("data.batch_size=2") == pytest.approx(plain / 2, rel=0.1)


def test_a_pretrained_model_is_known_from_its_configuration_alone(tmp_path):
    from lightning_modules.language.llama import new_llama

    with torch.device("meta"):
        model = new_llama("debug", 640, 64)
    model.config.save_pretrained(tmp_path)
    memory, notes = estimate(config_of(f"module.pretrained={tmp_path}", f"data.tokenizer={tmp_path}"))
    assert memory.phases["forward"]["parameters"] == pytest.approx(4 * sum(p.numel() for p in model.parameters()), rel=0.001)
    assert notes == ()


def test_a_vocabulary_that_is_not_here_is_assumed_and_said_or_given():
    words = ("module.size=debug", "data.tokenizer=nobody/has-this")
    assumed, notes = estimate(config_of(*words))
    assert notes[0].startswith("vocabulary: 32000 tokens are assumed, because the tokenizer nobody/has-this is not on this machine")
    given, silent = estimate(config_of(*words), 16000)
    assert silent == ()
    difference = assumed.phases["forward"]["parameters"] - given.phases["forward"]["parameters"]
    assert difference == 2 * 16000 * 64 * 4  # embedding and head


def test_a_method_that_needs_its_data_is_refused(tmp_path, monkeypatch):
    (tmp_path / "shy.py").write_text(
        "from lightning_modules.base import MethodModule, OptimizerFactory\n"
        "from lightning_modules.fira.module import FiraModuleConfig\n"
        "class Shy(MethodModule):\n"
        "    def __init__(self, config: FiraModuleConfig, optimizer: OptimizerFactory) -> None:\n"
        "        super().__init__(config, optimizer)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot run without its data"):
        estimate(config_of("module._target_=shy.Shy"))


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("h100", 80 * 10**9), ("512mb", 512 * 10**6)])
def test_a_device_is_a_size_or_a_name(text, size):
    assert device_bytes(text) == size


def test_an_unknown_device_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"device: .*'A100-80'\. Did you mean 'A100-80GB'\?"):
        device_bytes("A100-80")


def test_the_verdict_has_three_grades_and_names_the_smallest_device_with_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert verdict(70 * 10**9, 80 * 10**9, "H100") == "H100: fits, 10.00 GB are left"
    assert verdict(75 * 10**9, 80 * 10**9, "H100").startswith("H100: tight, 5.00 GB are left")
    assert verdict(81 * 10**9, 80 * 10**9, "H100") == "H100: does not fit, 1.00 GB are missing"
    assert verdict(20 * 10**9, None, "") == "the smallest known device with room: RTX3090, RTX4090, L4, A10 (24 GB)"
    assert verdict(10**12, None, "").startswith("no known device has room")


def test_the_command_prints_the_table_of_a_run(here):
    done = here("estimate", *words_of(), "strategy=fsdp", "trainer.devices=2", "device=24GB")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["forward", "backward", "optimizer", "step"] in lines
    numbers = {line[0]: [float(number) for number in line[-3:]] for line in lines if line and line[0] in ("parameters", "all")}
    assert numbers["all"][1] > numbers["parameters"][1] > 0
    assert "24GB: fits" in done.stdout
    assert "fsdp, 2 processes" in done.stdout


@pytest.mark.parametrize(("words", "message"), [
    (["device=big"], "device: neither a size such as 80GB nor a known name: 'big'"),
    (["vocab_size=many"], "vocab_size: must be a number of tokens, not many"),
    (["optim.rnk=4"], "optim.rnk"),
])
def test_wrong_words_are_refused_in_one_line(words, message, here):
    done = here("estimate", *words_of(), *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
