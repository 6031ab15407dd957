"""One step of FreeKD over K networks: what is seen, who teaches where, the losses, and what the choices were worth.

Two networks are FreeKD, more are FreeKD++; the paper's ablations and the controls are switches of the same functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.freekd import losses, reward
from lightning_modules.freekd.agent import Agent, State, draw_carried, draw_teacher, log_likelihoods, policy_entropies, state_of
from lightning_modules.freekd.structure import LocalEdges, cosines, edges_within


@dataclass(frozen=True)
class DistilSection:
    nodes: Literal["train", "all"] = "train"
    """where networks teach each other: at labelled training nodes (paper), or at all nodes of the batch"""
    direction: Literal["agent", "random", "loss", "confidence", "mutual", "none"] = "agent"
    """who teaches at a node: the agent's choice; chance; the smaller cross-entropy; the lower entropy; all each other; nobody"""
    structure: Literal["agent", "all", "none"] = "agent"
    """which local structures are carried across: the agent's choice, all, or none"""
    neighbours: Literal["selected", "all"] = "selected"
    """local structure of a node: neighbours with the same teacher (paper), or all neighbours"""
    mu: float = 1.0
    """weight of the node-level loss"""
    rho: float = 1.0
    """weight of the structure-level loss"""
    temperature: float = 1.0
    """of the predictions that are taught; the loss is multiplied by its square"""
    tau: float = 1.0
    """temperature of the softmax over neighbours"""
    warmup: int = 0
    """steps before networks teach each other; the agent watches"""
    ramp: int = 0
    """steps after the warm-up over which mu and rho rise from 0"""

    def __post_init__(self) -> None:
        for name in ("mu", "rho", "warmup", "ramp"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")
        for name in ("temperature", "tau"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, not {getattr(self, name)}")
        if self.direction == "loss" and self.nodes == "all":
            raise ValueError("direction: loss needs a label at every node; write nodes=train, or direction=confidence")

    @property
    def asks_agent(self) -> bool:
        """Tell whether any choice is the agent's."""
        return self.direction == "agent" or (self.structure == "agent" and self.direction not in ("none", "mutual"))

    def strength(self, step: int) -> float:
        """Return the share of mu and rho that counts at a step, numbered from 0."""
        return float(min(max(step - self.warmup + 1, 0) / (self.ramp + 1), 1.0))

    def without_effect(self) -> dict[str, str]:
        """Name what the chosen direction or structure leaves unused."""
        if self.direction == "none":
            return dict.fromkeys(("nodes", "structure", "neighbours", "mu", "rho", "temperature", "tau", "warmup", "ramp"),
                                 "direction=none teaches nothing")
        if self.direction == "mutual":
            return {"neighbours": "direction=mutual has no choice of teacher to select by"}
        return dict.fromkeys(("neighbours", "rho", "tau"), "structure=none has no structure level") if self.structure == "none" else {}


@dataclass(frozen=True)
class RewardSection:
    kind: Literal["advantage", "centered", "paper"] = "advantage"
    """what a choice is worth: how much better the teacher knows the node than the others; the paper's reward, centred; the paper's"""
    gamma: float = 0.5
    """weight of the neighbourhood"""
    unlabelled: Literal["taught", "entropy", "none"] = "taught"
    """stand-in for the cross-entropy at unlabelled nodes: the entropy of what was taught, of what the networks say then, or nothing"""

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma: must be 0 or above, not {self.gamma}")

    def without_effect(self) -> dict[str, str]:
        """Name what only one kind reads."""
        return {} if self.kind == "advantage" else {"unlabelled": f"kind={self.kind} is made of labelled nodes only"}


@dataclass(frozen=True)
class Place:
    """The nodes B of a batch, whose actions are taken."""

    members: Tensor  # (|B|,) places in the batch
    labelled: Tensor  # (|B|,) bool: labels that training may read
    y: Tensor  # (|B|,) or (|B|, C); read only where `labelled`
    edges: LocalEdges


def place_of(edge_index: Tensor, y: Tensor, train_mask: Tensor, seeds: int, everywhere: bool) -> Place:
    """Pick B among the first `seeds` nodes of a batch: the labelled ones, or all of them; labels that are not for training become 0."""
    own = torch.arange(len(y), device=y.device) < seeds
    members = (own if everywhere else own & train_mask).nonzero().squeeze(1)
    labelled = train_mask[members]
    hidden = labelled if y.ndim == 1 else labelled[:, None]
    return Place(members, labelled, torch.where(hidden, y[members], 0), edges_within(edge_index, members, len(y)))


@dataclass(frozen=True)
class Seen:
    """What K networks say of B."""

    z: list[Tensor]  # K encodings (|B|, d_k)
    logits: Tensor  # (K, |B|, C)
    log_p: Tensor  # (K, |B|, V, O)
    ce: Tensor  # (K, |B|)


def see(outputs: Sequence[tuple[Tensor, Tensor]], place: Place, multi_label: bool) -> Seen:
    """Gather from each network's encodings (n, d_k) and logits (n, C) what concerns B."""
    logits = torch.stack([o[place.members] for _, o in outputs])
    log_p = losses.log_probabilities(logits, multi_label)
    return Seen([z[place.members] for z, _ in outputs], logits, log_p, losses.cross_entropies(log_p, place.y))


@dataclass(frozen=True)
class Decision:
    """Who teaches where, and what the agent saw when it chose."""

    teacher: Tensor | None  # a1, (|B|,) int64; None: all teach each other
    carried: Tensor  # a2, (|B|,) float of 0 and 1
    kept: Tensor  # (E,) bool: edges of the local structures M_i
    acts: Tensor  # (|B|,) bool: the second choice has an effect
    first: Tensor  # features of the first level
    second: Tensor  # features of the second level
    certainty: Tensor  # (K, |B|)


def decide(config: DistilSection, agent: Agent, seen: Seen, cosine: Tensor, place: Place, uniform: Tensor) -> Decision:
    """Let the agent, or what stands for it, act on what is seen; `uniform` (|B|, 2) are its dice, `cosine` (K, E) in each network."""
    state = state_of(seen.z, seen.log_p, seen.ce, place.labelled, config.nodes == "all")
    edges, every = place.edges, torch.ones_like(place.edges.centre, dtype=torch.bool)
    with torch.no_grad():
        first = agent.first_features(state)
        teacher = _teacher(config, agent, first, seen, state, uniform[:, 0])
        same = teacher is None or config.neighbours == "all"
        kept = every if same else teacher[edges.centre] == teacher[edges.neighbour]  # type: ignore[index]
        similarity = edges.sums(cosine.detach() * kept) / edges.degrees(kept).clamp(min=1)  # u, (K, |B|)
        second = agent.second_features(state, similarity, teacher if teacher is not None else seen.ce.argmin(0))
        carried = torch.ones_like(uniform[:, 1])
        if config.structure == "agent" and teacher is not None:
            carried = draw_carried(agent.second_logit(second), uniform[:, 1])
    acts = (edges.degrees(kept) > 1) & (config.structure == "agent")
    return Decision(teacher, carried, kept, acts, first, second, state.certainty)


def _teacher(config: DistilSection, agent: Agent, first: Tensor, seen: Seen, state: State, uniform: Tensor) -> Tensor | None:
    """Choose a1 as the direction says."""
    networks = len(seen.ce)
    if config.direction == "agent":
        return draw_teacher(agent.first_logits(first, state.certainty), uniform)
    if config.direction == "random":
        return (uniform * networks).long().clamp(max=networks - 1)
    if config.direction == "loss":
        return seen.ce.argmin(0)
    return state.certainty.argmax(0) if config.direction == "confidence" else None


def preferred(config: DistilSection, agent: Agent, seen: Seen, place: Place) -> Tensor | None:
    """Return the likeliest teacher of each node, (|B|,), without dice; None where nobody chooses."""
    state = state_of(seen.z, seen.log_p, seen.ce, place.labelled, config.nodes == "all")
    if config.direction == "agent":
        return agent.first_logits(agent.first_features(state), state.certainty).argmax(-1)
    if config.direction == "loss":
        return seen.ce.argmin(0)
    return state.certainty.argmax(0) if config.direction == "confidence" else None


@dataclass(frozen=True)
class Lessons:
    """The losses of K networks, (K,) each."""

    ce: Tensor
    node: Tensor
    structure: Tensor


def lessons(config: DistilSection, seen: Seen, cosine: Tensor, place: Place, decision: Decision | None, multi_label: bool) -> Lessons:
    """Return L_CE, the mean over labelled nodes of B, L_node and L_struct of each network; without a decision nothing is taught."""
    ce = torch.where(place.labelled, seen.ce, 0.0).sum(1) / place.labelled.sum().clamp(min=1)
    node = structure = torch.zeros_like(ce)
    if decision is not None:
        log_p = losses.log_probabilities(seen.logits, multi_label, config.temperature)
        node = losses.node_losses(log_p, decision.teacher) * config.temperature**2
        if config.structure != "none":
            structure = losses.structure_losses(cosine, decision.kept, place.edges, decision.teacher, decision.carried, config.tau)
    return Lessons(ce, node, structure)


def cosines_of(seen: Seen, edges: LocalEdges) -> Tensor:
    """Return g(z_i, z_j) of each edge in each network, (K, E)."""
    return torch.stack([cosines(z, edges) for z in seen.z])


@dataclass(frozen=True)
class Experience:
    """Choices and what they were worth: all that the policy gradient needs, after the networks have gone on."""

    first: Tensor  # features
    second: Tensor  # features
    certainty: Tensor  # (K, |B|)
    teacher: Tensor  # (|B|,)
    carried: Tensor  # (|B|,)
    acts: Tensor  # (|B|,) bool
    worth: Tensor  # (2, |B|): A1 and A2

    @staticmethod
    def unjudged(decision: Decision) -> "Experience":
        """Make an experience that teaches the agent nothing, because no reward is known."""
        teacher = decision.teacher if decision.teacher is not None else decision.certainty.argmax(0)
        return Experience(decision.first, decision.second, decision.certainty, teacher, decision.carried, decision.acts,
                          decision.carried.new_zeros(2, len(teacher)))


def judge(config: RewardSection, agent: Agent, decision: Decision, after: Seen, place: Place, baseline: Tensor | None,
          average: Callable[[Tensor, Tensor], Tensor]) -> tuple[Experience, Tensor]:
    """Return what the choices were worth once the networks were updated, with the paper's rewards R (|B|,).

    `after` is seen without dropout; `baseline` (|B|,) is R of the time before, NaN where there was none, which the paper's kinds need;
    `average` takes the mean of values over the nodes of all processes that a mask marks.
    """
    with torch.no_grad():
        rewards = reward.paper_rewards(after.ce, place.labelled, place.edges, config.gamma, average(after.ce.sum(0), place.labelled))
        told = Experience.unjudged(decision)
        if config.kind == "advantage":
            return replace(told, worth=_worth_by_level(config, agent, told, decision.kept, after, place)), rewards
        assert baseline is not None, "the paper's reward is judged against the last one"
        known = baseline.isfinite()
        worth = torch.where(known, rewards - baseline, 0.0)
        worth = reward.standardised(worth, known, centre=True) if config.kind == "centered" else worth
        return replace(told, worth=torch.stack([worth, worth])), rewards


def _worth_by_level(config: RewardSection, agent: Agent, told: Experience, kept: Tensor, after: Seen, place: Place) -> Tensor:
    """Return A1 and A2 of the reward called advantage, (2, |B|)."""
    stand_in = -told.certainty if config.unlabelled == "taught" else losses.entropies(after.log_p)
    counted = place.labelled if config.unlabelled == "none" else torch.ones_like(place.labelled)
    level = reward.levels(reward.questions(after.ce, place.labelled, stand_in), counted)
    first, second = agent.first_logits(told.first, told.certainty), agent.second_logit(told.second)
    a1 = reward.level_advantages(level, first, place.edges, counted, config.gamma, told.teacher)
    a2 = reward.structure_advantages(level, second, place.edges, kept & counted[place.edges.neighbour], told.teacher, told.carried)
    return torch.stack([reward.standardised(a1, counted, centre=False), reward.standardised(a2, told.acts & counted, centre=False)])


def agent_loss(agent: Agent, told: Experience, entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the policies' loss, REINFORCE less `entropy` times their mean entropy, and what to record of them."""
    first, second = agent.first_logits(told.first, told.certainty), agent.second_logit(told.second)
    likely = log_likelihoods(first, second, told.teacher, told.carried)
    loss = reward.policy_loss(*likely, told.worth[0], told.worth[1], told.acts.float())
    doubt = policy_entropies(first, second)
    spread = first.detach().softmax(-1)
    nodes = max(len(told.teacher), 1)
    loss = loss - entropy * (doubt[0].sum() + (doubt[1] * told.acts).sum()) / nodes
    return loss, {"share": spread.sum(0) / nodes, "entropy": doubt[0].detach().sum() / nodes, "spread": spread.std(0, correction=0).mean()}
