"""The module's settings, and the preset that makes the choices of the public code."""

from dataclasses import dataclass, field, replace
from typing import Literal

from lightning_modules.otgnet.bottleneck import BottleneckSection
from lightning_modules.otgnet.continual import RetainSection
from lightning_modules.otgnet.gate import GateSection
from lightning_modules.otgnet.network import NetworkSection
from lightning_modules.otgnet.replay import ReplaySection


@dataclass(frozen=True)
class OtgnetModuleConfig:
    network: NetworkSection = field(default_factory=NetworkSection)
    """encoder and classifier"""
    gate: GateSection = field(default_factory=GateSection)
    """what passes between classes"""
    bottleneck: BottleneckSection = field(default_factory=BottleneckSection)
    """how the class-agnostic code learns"""
    replay: ReplaySection = field(default_factory=ReplaySection)
    """what is kept of finished tasks, and how it is trained on again"""
    retain: RetainSection = field(default_factory=RetainSection)
    """what else holds on to finished tasks: EWC, LwF, iCaRL's nearest mean"""
    classes: Literal["open", "task", "both"] = "open"
    """what a label competes with in the loss: all open classes, those of its own task, or the mean of both losses"""
    balance: bool = True
    """raise logits by the log of their class's share in training, so that new classes do not crowd out replayed ones"""
    carry: bool = True
    """begin a task with the memory that the last one left; false: with a fresh one"""
    keep: Literal["best", "last"] = "best"
    """weights that a task ends with: of the pass with the best validation, or of the last"""
    select: Literal["class_il", "task_il"] = "class_il"
    """accuracy on the task's validation nodes that is best"""
    frozen_heads: bool = False
    """never train the heads"""
    compat: Literal["none", "official"] = "none"
    """official: the public code's choices. Heads are never trained and compete within a task only, empty slots take part in the attention,
    no votes, no balance, memory starts anew in each task, the code learns as fast as its estimators; triads are kept by the plain product
    of gradients, with the opposite sign"""

    def __post_init__(self) -> None:
        if self.retain.nearest_mean and self.replay.kind == "none":
            raise ValueError("retain.nearest_mean: must be false where replay.kind=none keeps no events whose mean could be taken")

    def settled(self) -> "OtgnetModuleConfig":
        """Return the settings with the preset in force."""
        if self.compat == "none":
            return self
        return replace(self, network=replace(self.network, masked=False, votes=0), classes="task", balance=False, carry=False, keep="best",
                       select="task_il", frozen_heads=True, bottleneck=replace(self.bottleneck, lr=0.005, estimator_lr=0.005),
                       replay=replace(self.replay, importance="gradient", helpful=False))

    def without_effect(self) -> dict[str, str]:
        """Name what the preset decides."""
        names = ("classes", "balance", "carry", "keep", "select", "frozen_heads")
        return dict.fromkeys(names, "compat=official decides it") if self.compat == "official" else {}
