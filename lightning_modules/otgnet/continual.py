"""How a network holds on to earlier tasks by its weights and its answers, beside or in place of replay.

    EWC     1/2 Σ_T Σ_i F_i (θ_i - θ_i after T)²                     weights that task T needed are pulled back (Kirkpatrick et al. 2017)
    LwF     τ² KL(softmax(old / τ) || softmax(new / τ))              over the classes that were open before (Li and Hoiem 2016)
    iCaRL   argmin_c || h / |h| - mean of class c's kept features ||   in tests, in place of the heads (Rebuffi et al. 2017)

iCaRL as a whole is LwF with replay.kind=herding and the nearest mean.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.otgnet.exams import Exams
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.replay import Kept
from lightning_modules.otgnet.view import View, look

CHUNK = 25  # events whose gradients are held at a time
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class RetainSection:
    ewc: float = 0.0
    """weight of the pull towards what each weight was after earlier tasks, by its Fisher information; 0: none"""
    fisher_events: int = 200
    """events of a finished task that the Fisher information is estimated on"""
    distil: float = 0.0
    """weight of the divergence from what the network said of old classes before this task; 0: none"""
    temperature: float = 2.0
    """softens both sides of that divergence"""
    nearest_mean: bool = False
    """test by the nearest mean of the features of kept events, as iCaRL does, in place of the heads"""

    def __post_init__(self) -> None:
        for name in ("ewc", "distil"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")
        if self.fisher_events < 1:
            raise ValueError(f"fisher_events: must be at least 1, not {self.fisher_events}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: must be above 0, not {self.temperature}")

    def without_effect(self) -> dict[str, str]:
        """Name what is idle without its term."""
        idle = {} if self.ewc else {"fisher_events": "ewc=0 needs no Fisher information"}
        return idle if self.distil else idle | {"temperature": "distil=0 has no divergence to soften"}


@dataclass
class Retained:
    """What finished tasks have left: the sum of their Fisher informations, the weights these pull to, and the last task's network."""

    importance: Parameters = field(default_factory=dict)
    anchor: Parameters = field(default_factory=dict)
    weights: Parameters = field(default_factory=dict)

    def add(self, importance: Parameters, parameters: Parameters) -> None:
        """Add a task's pull. Quadratics add up to one, around the mean of their centres by importance, but for a constant."""
        for name, new in importance.items():
            old = self.importance.get(name, torch.zeros_like(new))
            total = old + new
            drawn = old * self.anchor.get(name, torch.zeros_like(new)) + new * parameters[name].detach()
            self.anchor[name] = torch.where(total > 0, drawn / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
            self.importance[name] = total

    def pull(self, parameters: Parameters) -> Tensor:
        """Return EWC's penalty but for a constant, 0 before the first task has ended."""
        parts = [(value * (parameters[name] - self.anchor[name]).square()).sum() for name, value in self.importance.items()]
        return 0.5 * torch.stack(parts).sum() if parts else torch.zeros(())

    def to(self, device: torch.device) -> None:
        self.importance, self.anchor, self.weights = ({name: value.to(device) for name, value in part.items()}
                                                      for part in (self.importance, self.anchor, self.weights))

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def teachers(self, model: OpenModel) -> list[OpenModel]:
        """Return the network as the last task has left it; none before the first has ended, or if nobody asks."""
        if not self.weights:
            return []
        old = copy.deepcopy(model)
        old.load_state_dict(self.weights)
        return [old.eval().requires_grad_(False)]


def learning(model: OpenModel) -> Parameters:
    """Name the weights that classification trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("code.")}


def squared_gradients(losses: Tensor, parameters: Parameters) -> Parameters:
    """Return the sum over samples of the squares of the gradient of each loss (n,)."""
    each = torch.autograd.grad(losses, list(parameters.values()), torch.eye(len(losses), dtype=losses.dtype, device=losses.device),
                               is_grads_batched=True, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g.square().sum(0) for (name, p), g in zip(parameters.items(), each, strict=True)}


def fisher(model: OpenModel, exams: Exams, task: int, memory: Memory, count: int, generator: torch.Generator) -> Parameters:
    """Estimate the diagonal of the Fisher information at `count` training events of a task, with classes drawn as the model says."""
    around, events = exams.around(task, "train", task), exams.data.events(task, "train")
    events = events[torch.randperm(len(events), generator=generator)[:count]].sort().values
    parameters, was_training, reach = learning(model), model.training, exams.reach
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    model.eval()
    for part in events.split(CHUNK):
        _, logits = model(look(exams.events(part), around, memory, reach.neighbours, reach.votes, reach.gate), task + 1)
        said = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).view(-1).to(logits.device)
        for name, squares in squared_gradients(F.cross_entropy(logits, said, reduction="none"), parameters).items():
            total[name] += squares / (2 * len(events))
    model.train(was_training)
    return total


def divergence(teacher: OpenModel, model: OpenModel, view: View, hidden: Tensor, opened: int, temperature: float) -> Tensor:
    """Return what each of the Q ends of a view has strayed from its answer over the first `opened` tasks' classes, (Q,), by the heads."""
    old = model.heads.opened(opened)
    with torch.no_grad():
        before = teacher.heads(teacher.encoder(view, teacher.code).hidden, opened)[:, old]
    return strayed(model.heads(hidden, opened)[:, old], before, temperature)


def strayed(logits: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Return τ² KL(softmax(before / τ) || softmax(logits / τ)) of each row (n,)."""
    now, then = (F.log_softmax(values / temperature, -1) for values in (logits, before))
    return temperature**2 * F.kl_div(now, then, reduction="none", log_target=True).sum(-1)


def class_means(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class's features (n, d) of length 1, as a row of length 1, (C, d); 0 for a class without any."""
    known = label >= 0
    total = features.new_zeros(num_classes, features.shape[1])
    return F.normalize(total.index_add_(0, label[known], F.normalize(features[known])))


@torch.no_grad()
def kept_means(model: OpenModel, exams: Exams, kept: list[dict[int, Kept]], snapshots: list[Memory]) -> Tensor:
    """Return the means (C, classifier) of kept events' ends as the network sees them now, each in the memory of its own task."""
    features, labels, reach, was_training = [], [], exams.reach, model.training
    model.eval()
    for task, classes in enumerate(kept):
        for kind, one in classes.items():
            around = exams.around(task, "train", task)
            view = look(exams.events(one.events), around, snapshots[task], reach.neighbours, reach.votes, reach.gate)
            features.append(model.encoder(view, model.code).hidden)
            labels.append(torch.where(around.known[view.node] == kind, kind, -1))
    model.train(was_training)
    return class_means(torch.cat(features), torch.cat(labels), model.heads.num_classes)
