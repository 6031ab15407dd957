"""Settings that do not go together are refused or warned of before anything is built, with the reason and what to write instead."""

import pytest

from pipelines.config import ConfigError, ConfigWarning, compose
from pipelines.pairs import LACKS

TWO_OPTIMIZERS = """
from lightning_modules.base import MethodModule, OptimizerFactory
from lightning_modules.fira.module import FiraModuleConfig


class Two(MethodModule):
    STRATEGIES = ("single", "ddp", "deepspeed")
    OPTIMIZERS = 2

    def __init__(self, config: FiraModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)


class Alone(Two):
    STRATEGIES = ("single",)
    OPTIMIZERS = 1
"""


@pytest.fixture
def two(tmp_path, monkeypatch):
    """The words that choose a method of the user's own, but for the name of its class in two.py."""
    (tmp_path / "two.py").write_text(TWO_OPTIMIZERS)
    monkeypatch.syspath_prepend(tmp_path)
    return ["method=fira", "trainer.max_steps=1"]


@pytest.mark.parametrize(("words", "message"), [
    ("trainer.devices=2", "trainer.devices: strategy=single is one process, not 2. Write trainer.devices=1, or strategy=ddp"),
    ("trainer.num_nodes=3", "trainer.num_nodes: strategy=single is one process, not 3. Write trainer.num_nodes=1, or strategy=ddp"),
    ("strategy=deepspeed strategy.stage=0", "strategy.stage: must be 1, 2 or 3, not 0; strategy=ddp is the one that spreads nothing"),
    ("strategy=deepspeed trainer.devices=2 trainer.precision=64-true",
     "trainer.precision=64-true: strategy=deepspeed does not have it. Write trainer.precision=32-true, or strategy=ddp or strategy=single"),
    ("strategy=fsdp trainer.devices=2 trainer.precision=64-true",
     "trainer.precision=64-true: strategy=fsdp does not have it. Write trainer.precision=32-true, or strategy=ddp or strategy=single"),
    ("strategy=fsdp trainer.devices=2 trainer.precision=16-mixed",
     "trainer.precision=16-mixed: strategy=fsdp does not have it. Write trainer.precision=bf16-mixed, or strategy=ddp or "
     "strategy=deepspeed or strategy=single"),
    ("strategy=deepspeed trainer.devices=2 trainer.precision=16-mixed trainer.accelerator=cpu",
     "trainer.precision=16-mixed: deepspeed has no float16 on most CPUs. Write trainer.precision=bf16-mixed"),
    ("checkpoint.sharded=true",
     "checkpoint.sharded: strategy=single keeps all weights on each process. Write checkpoint.sharded=false, or strategy=fsdp"),
    ("strategy=deepspeed trainer.devices=2 checkpoint.sharded=true",
     "checkpoint.sharded: strategy=deepspeed cuts weights anywhere and writes them whole. "
     "Write checkpoint.sharded=false, or strategy=fsdp"),
    ("strategy=tensor_parallel", "strategy: no such choice 'tensor_parallel'. Choices: ddp, deepspeed, fsdp, single"),
])
def test_what_cannot_work_together_is_refused_with_the_alternative(words, message):
    with pytest.raises(ConfigError) as error:
        compose(["experiment=fira_debug", *words.split()])
    assert str(error.value).startswith(message)


def test_a_student_that_overflows_in_float16_is_refused_there():
    words = ["experiment=kpod_debug", "trainer.precision=16-mixed"]
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed: T5 overflows in float16.* Write trainer\.precision=bf16-mixed$"):
        compose([*words, "data.layout=seq2seq"])
    assert compose(words).trainer.precision == "16-mixed"


def test_several_optimizers_are_refused_under_deepspeed_and_allowed_elsewhere(two):
    words = [*two, "module._target_=two.Two", "trainer.devices=2"]
    with pytest.raises(ConfigError) as error:
        compose([*words, "strategy=deepspeed"])
    assert str(error.value) == "strategy=deepspeed: takes one optimizer, and method fira has 2. Write strategy=ddp or strategy=single"
    assert compose([*words, "strategy=ddp"]).strategy.name == "ddp"


def test_a_method_that_runs_alone_only_is_not_sent_to_other_strategies(two):
    words = [*two, "module._target_=two.Alone", "trainer.devices=2"]
    with pytest.raises(ConfigError, match=r"strategy=fsdp: method fira runs on single only\. Write strategy=single$"):
        compose([*words, "strategy=fsdp"])
    with pytest.raises(ConfigError, match=r"one process, not 2\. Write trainer\.devices=1$"):
        compose(words)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_a_strategy_for_many_processes_on_one_is_warned_of(strategy):
    with pytest.warns(ConfigWarning, match=f"strategy={strategy}: one process shares with no other"):
        compose(["experiment=fira_debug", f"strategy={strategy}"])


def test_a_key_of_another_strategy_is_warned_of():
    with pytest.warns(ConfigWarning, match=r"strategy\.stage: no effect, because only strategy=deepspeed has it"):
        compose(["experiment=fira_debug", "strategy=ddp", "trainer.devices=2", "strategy.stage=3"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_what_works_together_passes_without_a_word(strategy, recwarn):
    compose(["experiment=fira_debug", f"strategy={strategy}", "trainer.devices=2", "trainer.precision=bf16-mixed"])
    assert [w for w in recwarn if issubclass(w.category, ConfigWarning)] == []


def test_lightning_itself_lacks_the_precisions_that_are_refused_and_no_others():
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins import DeepSpeedPrecision
    from lightning.pytorch.strategies import ModelParallelStrategy

    makes = {"fsdp": lambda precision: Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), precision=precision),
             "deepspeed": DeepSpeedPrecision}
    for strategy, make in makes.items():
        for precision in ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"):
            if precision in LACKS[strategy]:
                with pytest.raises(ValueError, match=r"64-true|16-mixed"):
                    make(precision)
            else:
                make(precision)
