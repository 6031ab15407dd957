"""Settings that are right one by one and wrong together: refused with the reason and what to write instead, or warned of."""

import warnings
from typing import Any

from pipelines.catalog import choices_of
from pipelines.errors import ConfigError, ConfigWarning
from pipelines.schema import RunConfig
from pipelines.sources import class_constants

LACKS = {"fsdp": ("64-true", "16-mixed"), "deepspeed": ("64-true",)}  # strategy -> precisions that Lightning refuses for it


def refuse_impossible(config: RunConfig) -> None:
    """Raise ConfigError for settings that cannot work together; warn of those that work and gain nothing."""
    constants = class_constants(config.module.target)
    if narrower := getattr(config.module.config, "strategies", None):  # as the settings have it
        constants = {**constants, "STRATEGIES": narrower()}
    _refuse_strategy(config, constants)
    _refuse_precision(config, constants)
    _refuse_parts(config)
    _refuse_handled_steps(config, constants)
    processes = config.trainer.devices * config.trainer.num_nodes
    name = config.strategy.name
    if name == "single" and processes > 1:
        key = "devices" if config.trainer.devices > 1 else "num_nodes"
        others = _others(config, constants, "single")
        instead = f", or strategy={others[0]}" if others else ""
        raise ConfigError(f"trainer.{key}: strategy=single is one process, not {processes}. Write trainer.{key}=1{instead}")
    if name != "single" and processes == 1:
        warnings.warn(ConfigWarning(f"strategy={name}: one process shares with no other, which only costs. "
                                    "Write strategy=single, or trainer.devices=N"), stacklevel=4)


def _refuse_strategy(config: RunConfig, constants: dict[str, Any]) -> None:
    """Refuse a strategy on which the method is not exact."""
    name, allowed = config.strategy.name, constants.get("STRATEGIES")
    optimizers = constants.get("OPTIMIZERS", 1)
    if name == "deepspeed" and optimizers > 1:
        others = " or ".join(f"strategy={other}" for other in _others(config, constants, "deepspeed"))
        raise ConfigError(f"strategy=deepspeed: takes one optimizer, and method {config.method} has {optimizers}. Write {others}")
    if allowed is not None and name not in allowed:
        raise ConfigError(f"strategy={name}: method {config.method} runs on {', '.join(allowed)} only. Write strategy={allowed[0]}")


def _refuse_precision(config: RunConfig, constants: dict[str, Any]) -> None:
    """Refuse a precision that the strategy does not have."""
    name, precision = config.strategy.name, config.trainer.precision
    if precision in LACKS.get(name, ()):
        others = " or ".join(f"strategy={other}" for other in _others(config, constants, name) if precision not in LACKS.get(other, ()))
        instead = "bf16-mixed" if precision == "16-mixed" else "32-true"
        raise ConfigError(f"trainer.precision={precision}: strategy={name} does not have it. "
                          f"Write trainer.precision={instead}, or {others}")
    if name == "deepspeed" and precision == "16-mixed" and config.trainer.accelerator == "cpu":
        raise ConfigError("trainer.precision=16-mixed: deepspeed has no float16 on most CPUs. Write trainer.precision=bf16-mixed")
    if precision == "16-mixed" and getattr(config.data.config, "layout", None) == "seq2seq":
        raise ConfigError("trainer.precision=16-mixed: T5 overflows in float16, and its loss is NaN. Write trainer.precision=bf16-mixed")


def _refuse_parts(config: RunConfig) -> None:
    """Refuse to let each process write its part where the parts are not rows that torch.distributed.checkpoint knows."""
    name = config.strategy.name
    if config.checkpoint.sharded and name != "fsdp":
        reason = "cuts weights anywhere and writes them whole" if name == "deepspeed" else "keeps all weights on each process"
        raise ConfigError(f"checkpoint.sharded: strategy={name} {reason}. Write checkpoint.sharded=false, or strategy=fsdp")


def _refuse_handled_steps(config: RunConfig, constants: dict[str, Any]) -> None:
    """Refuse what Lightning does around a step only where it makes that step: a method with several optimizers makes its own."""
    optimizers, t = constants.get("OPTIMIZERS", 1), config.trainer
    if optimizers < 2:
        return
    for key, value, usual in (("gradient_clip_val", t.gradient_clip_val, None), ("accumulate_grad_batches", t.accumulate_grad_batches, 1)):
        if value != usual:
            raise ConfigError(f"trainer.{key}: method {config.method} has {optimizers} optimizers and steps them itself. "
                              f"Write trainer.{key}={'null' if usual is None else usual}")
    if t.precision == "16-mixed":
        raise ConfigError(f"trainer.precision=16-mixed: method {config.method} has {optimizers} optimizers, and one scale for all of them "
                          "is not exact. Write trainer.precision=bf16-mixed")


def _others(config: RunConfig, constants: dict[str, Any], without: str) -> list[str]:
    """List the strategies that the method may use instead of one."""
    allowed = constants.get("STRATEGIES")
    return [other for other in choices_of("strategy") if other != without and (allowed is None or other in allowed)]
