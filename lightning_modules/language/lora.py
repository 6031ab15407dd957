"""Low-rank adapters (LoRA, Hu et al. 2021): which layers get factors, and with which scale."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from peft import PeftModel  # takes a second to import, and only LoRA needs it

LINEAR = (nn.Linear, Conv1D)  # the latter is GPT-2's


@dataclass(frozen=True)
class LoraSection:
    rank: int = 0
    """rank of the LoRA factors; 0: no LoRA, all weights train"""
    alpha: float | None = None
    """LoRA scale: the update is multiplied by alpha / rank; null: 2 * rank"""
    dropout: float = 0.05
    """dropout on the input of the LoRA factors"""
    targets: list[str] = field(default_factory=list)
    """names of the linear layers that get factors; none given: all projections of attention"""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank: must be 0 (no LoRA) or above, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must lie in 0..1, not {self.dropout}")

    def without_effect(self) -> dict[str, str]:
        """Name what only adapters need."""
        return {} if self.rank else dict.fromkeys(("alpha", "dropout", "targets"), "rank=0 means no LoRA")


def add_lora(model: PreTrainedModel, lora: LoraSection) -> "PeftModel":
    """Freeze `model` and add trainable low-rank factors to its linear layers (Eq. 3).

    Raises ValueError for a target that no linear layer has.
    """
    from peft import LoraConfig, get_peft_model

    linear = sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, LINEAR)})
    for target in lora.targets:
        if target.rpartition(".")[2] not in linear:
            raise ValueError(f"module.lora.targets: no linear layer is called {target}; choose from {', '.join(linear)}")
    targets = lora.targets or attention_projections(model)
    if not targets:
        raise ValueError(f"module.lora.targets: {type(model).__name__} has no layers named as attention; choose from {', '.join(linear)}")
    return get_peft_model(model, LoraConfig(
        r=lora.rank, lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]  # peft divides by the rank
        lora_dropout=lora.dropout, target_modules=targets, fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    ))


def attention_projections(model: nn.Module) -> list[str]:
    """Name the linear layers inside attention as `parent.layer`, because GPT-2 calls a layer of its MLP `c_proj` too."""
    paths = [name.split(".") for name, layer in model.named_modules() if isinstance(layer, LINEAR)]
    return sorted({".".join(path[-2:]) for path in paths if len(path) > 1 and "att" in path[-2].lower()})
