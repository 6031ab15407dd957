"""FreeKD, FreeKD-Prompt and FreeKD++: networks on one graph that teach each other where an agent says so, beside their own baselines.

A step makes one forward pass of each network, one summed backward pass through their losses and the agent's, one step of each optimizer:

    networks   CE + mu L_node + rho L_struct under the agent's choices
    agent      REINFORCE on the choices of the step before, whose worth was found once the networks had been updated
    prompts    undistorted and diverse views, with the networks held still

Prompts have a backward pass of their own: they alternate with the networks.

What crosses from one to another is constant, so the sum keeps them apart, and DDP sees every gradient once. Only the networks'
optimizer is counted in `trainer.global_step`: a training step is one step.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datamodules.graphs import GraphBatch
from lightning_modules.base import MethodModule, OptimizerFactory, OwnFolder, Table, optimizer_steps
from lightning_modules.constant import constant
from lightning_modules.freekd import prompt, step
from lightning_modules.freekd.agent import Agent, AgentSection, CollapseWatch
from lightning_modules.freekd.export import save_networks
from lightning_modules.freekd.networks import Features, NetworkConfig, make_network
from lightning_modules.freekd.pieces import in_pieces
from lightning_modules.freekd.prompt import FeaturePrompt, PromptSection
from lightning_modules.freekd.scores import Scoreboard
from lightning_modules.freekd.step import Decision, DistilSection, Experience, Place, RewardSection, Seen
from lightning_modules.optim.adamw import AdamW, AdamWConfig
from lightning_modules.processes import from_all

Outputs = list[tuple[Tensor, Tensor]]  # of each network: encodings (n, d), logits (n, C)


@dataclass(frozen=True)
class FreekdModuleConfig:
    networks: list[str] = field(default_factory=lambda: ["gcn", "sage"])
    """networks that learn together: gcn, sage, gat, gin, gcnii or mlp each; more than two are FreeKD++"""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """shape of every network"""
    l2: float = 5e-4
    """weight of half the squared norm of a network's weights in its loss: what PyG's examples write as Adam's weight_decay"""
    distil: DistilSection = field(default_factory=DistilSection)
    """who teaches whom, where, and how strongly"""
    agent: AgentSection = field(default_factory=AgentSection)
    """the agent's policies"""
    reward: RewardSection = field(default_factory=RewardSection)
    """what a choice is worth"""
    prompt: PromptSection = field(default_factory=PromptSection)
    """FreeKD-Prompt: learnt views of the graph"""
    compare_base: bool = True
    """train each network alone as well, from the same weights with the same dropout, and report the difference; twice the time"""
    edges_at_once: int = 0
    """edges whose messages a network holds at a time in validation, which sees the whole graph; 0: all; the outcome is the same"""

    def __post_init__(self) -> None:
        if len(self.networks) < 2:
            raise ValueError(f"networks: must be at least two, which teach each other, not {self.networks}")
        if unknown := set(self.networks) - {"gcn", "sage", "gat", "gin", "gcnii", "mlp"}:
            raise ValueError(f"networks: must be of gcn, sage, gat, gin, gcnii, mlp, not {min(unknown)}")
        for name in ("l2", "edges_at_once"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or above, not {getattr(self, name)}")


class FreekdModule(MethodModule):
    """K graph networks, the agent between them, and for each a twin that is taught by nobody."""

    STRATEGIES = ("single", "ddp", "fsdp")
    OPTIMIZERS = 2
    UNIT = "nodes"

    def __init__(self, config: FreekdModuleConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.automatic_optimization = False
        self.networks: nn.ModuleList | None = None  # made in configure_model, when the data knows its features
        self.names = [f"{name}{number}" for number, name in enumerate(config.networks, 1)]
        self.told: Experience | None = None  # the choices of the last step
        self.taught: tuple[Place, Tensor | None] | None = None  # who would teach where, asked of spread networks
        self.baseline = torch.empty(0)  # the paper's reward of each node at its last visit, NaN before the first
        self._watch = CollapseWatch(self.names)
        self._written = True  # whether the figures of this step are
        self._restored: dict[str, Any] = {}

    def configure_model(self) -> None:
        """Make networks, twins, agent and prompts; called by Lightning on every process, more than once."""
        if self.networks is not None:
            return
        config, data = self.config, self.trainer.datamodule  # type: ignore[attr-defined]
        self.multi_label = data.multi_label
        made = [make_network(name, data.num_features, data.num_classes, config.network) for name in config.networks]
        self.networks = nn.ModuleList(made)
        self.base = nn.ModuleList(copy.deepcopy(made) if config.compare_base else [])
        everywhere = config.distil.nodes == "all"
        self.agent = Agent([config.network.hidden] * len(made), 3 if everywhere else 1, 2 if everywhere else 0, config.agent)
        self.agent.requires_grad_(config.distil.asks_agent)
        tokens = config.prompt.tokens
        self.prompts = nn.ModuleList(FeaturePrompt(data.num_features, tokens) for _ in made if tokens)  # whole on every process
        for part in (*self.networks, *self.base, self.agent.theta, self.agent.delta):
            self.shard(part, [])
        self.num_nodes = data.num_nodes
        if config.reward.kind != "advantage":
            self.baseline = torch.full((self.num_nodes,), float("nan"))
        self.scores = Scoreboard(len(self.networks) + len(self.base), self.multi_label)
        self.choices_seed = torch.initial_seed()  # the same on all processes

    def configure_optimizers(self) -> Any:
        """Give the networks the optimizer of the run and its schedule; agent and prompts have AdamW of their own."""
        networks = self.optimizer([*self._named("networks"), *self._named("base")])
        self.total_steps = optimizer_steps(self.trainer)
        schedule = self.optimizer.schedule(networks, self.total_steps)
        optimizers: list[dict[str, Any]] = [{"optimizer": networks, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}]
        for part, lr in (("agent", self.config.agent.lr), ("prompts", self.config.prompt.lr)):
            if named := self._named(part):
                optimizers.append({"optimizer": AdamW(named, AdamWConfig(lr=lr))})
        return optimizers

    def _named(self, part: str) -> list[tuple[str, nn.Parameter]]:
        found = getattr(self, part).named_parameters(prefix=part)
        return [(name, p) for name, p in found if p.requires_grad]

    # -- what the networks see ---------------------------------------------------------------------------------------------------

    def features(self, batch: GraphBatch) -> list[Features]:
        """Return each network's own features (n, F): its view, and its prompt as it stands, which is a constant to them."""
        views: list[Features] = [batch.features(k) for k in range(len(self.config.networks))]
        return [self.prompts[k](x).constant() for k, x in enumerate(views)] if self.prompts else views

    def outputs(self, networks: nn.ModuleList, features: Sequence[Features], batch: GraphBatch, seed: int | None) -> Outputs:
        """Run networks on their features; with a `seed`, network k draws its dropout from seed + k, and so does its twin."""
        if seed is None:
            return [network(x, batch.edge_index) for network, x in zip(networks, features, strict=True)]
        found = []
        for k, (network, x) in enumerate(zip(networks, features, strict=True)):
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed + k)
                found.append(network(x, batch.edge_index))
        return found

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Let the networks look without dropout."""
        assert self.networks is not None
        self.networks.eval()
        try:
            yield
        finally:
            self.networks.train()

    def place(self, batch: GraphBatch) -> Place:
        """Return B and its edges, found once for a batch that is the same in every step."""
        if "place" in batch.prepared:
            return batch.prepared["place"]
        everywhere = self.config.distil.nodes == "all"
        place = step.place_of(batch.seed_edges, batch.y, batch.train_mask, batch.seeds, everywhere)
        if batch.static:
            batch.prepared["place"] = place
        return place

    # -- training ----------------------------------------------------------------------------------------------------------------

    def training_step(self, batch: GraphBatch, batch_idx: int) -> None:
        config, number, place = self.config, self.trainer.global_step, self.place(batch)
        self._written = (number + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        assert self.networks is not None
        seed = int(torch.randint(2**31, ()))
        views = self.features(batch)
        seen = step.see(self.outputs(self.networks, views, batch, seed), place, self.multi_label)
        cosine = self._cosines(seen, place)
        decision = self._decision(seen, cosine, batch, place, number)
        lessons = step.lessons(config.distil, seen, cosine, place, decision, self.multi_label)
        strength = config.distil.strength(number)
        taught = lessons.ce + strength * (config.distil.mu * lessons.node + config.distil.rho * lessons.structure)
        total = taught.sum() + self._penalty(self.networks)
        self._record({"loss": taught.mean(), "ce": lessons.ce.mean(), "node": lessons.node.mean(), "structure": lessons.structure.mean()})
        total = total + self._base_loss(batch, place, seed) + self._agent_loss(decision, number) + self._no_prompt_loss()
        self.manual_backward(total)
        self._update()
        if decision is not None and config.distil.asks_agent:
            self._judge(decision, batch, place, views)
        if self.prompts:
            self._learn_prompts(batch, place)

    def _cosines(self, seen: Seen, place: Place) -> Tensor:
        if self.config.distil.structure == "none" or self.config.distil.direction == "none":
            return seen.ce.new_zeros(len(seen.z), len(place.edges.centre))
        return step.cosines_of(seen, place.edges)

    def _decision(self, seen: Seen, cosine: Tensor, batch: GraphBatch, place: Place, number: int) -> Decision | None:
        """Choose by dice that belong to the step and the node, whichever process and batch a node comes in."""
        if self.config.distil.direction == "none":
            return None
        generator = torch.Generator().manual_seed((self.choices_seed + number) % 2**63)
        dice = torch.rand(self.num_nodes, 2, generator=generator)[batch.node_id[place.members].cpu()].to(self.device)
        return step.decide(self.config.distil, self.agent, seen, cosine, place, dice)

    def _penalty(self, networks: nn.ModuleList) -> Tensor:
        """Return the L2 term of all weights."""
        squares = [p.square().sum() for p in networks.parameters()]
        return self.config.l2 / 2 * torch.stack(squares).sum()

    def _base_loss(self, batch: GraphBatch, place: Place, seed: int) -> Tensor:
        """Return the losses of the twins, which see what the networks see but for prompts, with the same dropout."""
        if not self.base:
            return torch.zeros((), device=self.device)
        views = [batch.features(k) for k in range(len(self.base))]
        outputs = self.outputs(self.base, views, batch, seed)
        alone = step.see(outputs, place, self.multi_label)
        ce = step.lessons(self.config.distil, alone, alone.ce, place, None, self.multi_label).ce
        self._record({"base_loss": ce.mean()})
        return ce.sum() + self._penalty(self.base)

    def _agent_loss(self, decision: Decision | None, number: int) -> Tensor:
        """Return the policies' loss over the last step's choices; before there are any, one that teaches nothing."""
        if decision is None or not self.config.distil.asks_agent:
            return torch.zeros((), device=self.device)
        told, bonus = self.told, self.config.agent.entropy * max(1 - number / self.total_steps, 0.0)
        if told is None:
            told, bonus = Experience.unjudged(decision), 0.0
        loss, facts = step.agent_loss(self.agent, told, bonus)
        if self.config.distil.direction == "agent":
            shares = {f"share/{name}": share for name, share in zip(self.names, facts["share"], strict=True)}
            self._record({"policy": loss, "entropy": facts["entropy"], "spread": facts["spread"], **shares})
            self._watch(facts["share"], facts["spread"])
        return loss

    def _prompt_loss(self, batch: GraphBatch, place: Place) -> Tensor:
        """Return the prompts' objective at the networks as they are."""
        assert self.networks is not None
        config, plain = self.config.prompt, [batch.features(k) for k in range(len(self.networks))]
        with self.resting(), constant(self.networks):
            with torch.no_grad():
                before = step.see(self.outputs(self.networks, plain, batch, None), place, self.multi_label)
            views = [own(x) for own, x in zip(self.prompts, plain, strict=True)]
            after = step.see(self.outputs(self.networks, views, batch, None), place, self.multi_label)
        ce = step.lessons(self.config.distil, after, after.ce, place, None, self.multi_label).ce
        faithful = [prompt.undistorted(ce[k], before.log_p[k], after.log_p[k], view, config) for k, view in enumerate(views)]
        apart = prompt.diverse(after.z, config)
        self._record({"undistorted": torch.stack(faithful).mean(), "diverse": apart})
        return torch.stack(faithful).sum() + config.diversity * apart

    def _no_prompt_loss(self) -> Tensor:
        """Return a zero whose gradient is zero: DDP waits for one of every weight in the summed backward."""
        return 0.0 * sum((p.sum() for p in self.prompts.parameters()), torch.zeros((), device=self.device))

    def _learn_prompts(self, batch: GraphBatch, place: Place) -> None:
        """Step the prompts at the networks as they now are, by the gradient averaged over processes."""
        weights = list(self.prompts.parameters())
        gradients = torch.autograd.grad(self._prompt_loss(batch, place), weights)
        for p, gradient in zip(weights, gradients, strict=True):
            p.grad = self.trainer.strategy.reduce(gradient, reduce_op="mean")
        self._step_uncounted(self.trainer.optimizers[-1])

    def _update(self) -> None:
        """Step the optimizers of networks and agent; Lightning counts the networks' only."""
        found = self.optimizers()
        first, *others = found if isinstance(found, list) else [found]
        for other in others[:-1] if self.prompts else others:
            self._step_uncounted(other.optimizer)
        first.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def _step_uncounted(self, optimizer: Optimizer) -> None:
        self.trainer.strategy.optimizer_step(optimizer, lambda: None)

    def _judge(self, decision: Decision, batch: GraphBatch, place: Place, views: Sequence[Features]) -> None:
        """Find out, from the updated networks, what the choices were worth."""
        assert self.networks is not None
        with self.resting(), torch.no_grad():
            after = step.see(self.outputs(self.networks, views, batch, None), place, self.multi_label)
        nodes = batch.node_id[place.members].cpu()
        before = self.baseline[nodes].to(self.device) if len(self.baseline) else None
        self.told, rewards = step.judge(self.config.reward, self.agent, decision, after, place, before, self._mean_over_all)
        if before is not None:
            for ids, values in from_all((nodes, rewards.cpu())):
                self.baseline[ids] = values
        if decision.teacher is not None:
            right = (decision.teacher == after.ce.argmin(0)) & place.labelled
            self._record({"oracle": right.sum() / place.labelled.sum().clamp(min=1)})
            if (expert := self.trainer.datamodule.expert) is not None:  # type: ignore[attr-defined]
                self._record({"expert": (decision.teacher == expert[nodes].to(self.device)).float().mean()})

    def _mean_over_all(self, values: Tensor, mask: Tensor) -> Tensor:
        """Average what a mask marks over the nodes of all processes."""
        parts = torch.stack([torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)])
        total, count = self.trainer.strategy.reduce(parts, reduce_op="sum")
        return total / count.clamp(min=1)

    def _record(self, values: dict[str, Tensor]) -> None:
        """Log training figures: the loss at every step, the others, which take time, at those that are written down."""
        for name, value in values.items():
            if self._written or name == "loss":
                self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", sync_dist=True, batch_size=1)

    # -- validation --------------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.scores.start()

    def validation_step(self, batch: GraphBatch, batch_idx: int) -> None:
        assert self.networks is not None
        with in_pieces(self, self.config.edges_at_once):
            found = self.outputs(self.networks, self.features(batch), batch, None)
            found += self.outputs(self.base, [batch.features(k) for k in range(len(self.base))], batch, None)
        self.scores.add(torch.stack([o for _, o in found]), batch.y, {"valid": batch.valid_mask, "test": batch.test_mask})

    def on_validation_epoch_end(self) -> None:
        step_now = self._trained_steps()
        found = self.scores.finish(step_now, self._summed, keep=not self.trainer.sanity_checking)
        networks = len(self.names)
        self.log("val/loss", found["loss"][:networks].mean(), prog_bar=True)
        self.log("val/micro_f1", found["valid"][:networks].mean(), prog_bar=True)
        for name, value in zip(self.names, found["valid"]):
            self.log(f"val/micro_f1/{name}", value)
        if self.base:
            self.log("val/base_micro_f1", found["valid"][networks:].mean())
            for name, value in zip(self.names, found["valid"][networks:]):
                self.log(f"val/base_micro_f1/{name}", value)
        self._log_test(networks)

    def _log_test(self, networks: int) -> None:
        """Log each network's test figure at its best validation so far, and beside it that of its twin."""
        best = self.scores.best
        if best.isnan().any():
            return
        for name, value in zip(self.names, best[:, 2]):
            self.log(f"test/micro_f1/{name}", value)
        self.log("test/micro_f1", best[:networks, 2].mean())
        if self.base:
            for name, value in zip(self.names, best[networks:, 2]):
                self.log(f"test/base_micro_f1/{name}", value)
            self.log("test/base_micro_f1", best[networks:, 2].mean())
            self.log("test/gain", best[:networks, 2].mean() - best[networks:, 2].mean())
        self.tables["micro_f1"] = Table(*self.scores.table(self.names))

    def _trained_steps(self) -> int:
        return int(self._restored.get("step", 0)) if self.trainer.state.fn == "validate" else self.trainer.global_step

    def _summed(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum").cpu()

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no weight: the agent's memory on every process, the rewards, the best validation."""
        told = [None if one is None else vars(one) for one in from_all(self.told)]
        checkpoint["freekd"] = {"told": told, "baseline": self.baseline, "scores": self.scores.state_dict(),
                                "step": self.trainer.global_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; on more processes than before, the new ones begin without a memory of the last step."""
        self._restored = checkpoint["freekd"]
        told = self._restored["told"]
        mine = told[self.global_rank] if self.global_rank < len(told) else None
        self.told = None if mine is None else Experience(**{k: v.to(self.device) for k, v in mine.items()})
        self.baseline = self._restored["baseline"]
        self.scores.load_state_dict(self._restored["scores"])

    def exportable(self) -> OwnFolder:
        """Save every network with its prompt; `lightning_modules.freekd.export.load_network` reads one."""
        data, config = self.trainer.datamodule, self.config  # type: ignore[attr-defined]
        assert self.networks is not None
        networks, sizes = self.networks, (data.num_features, data.num_classes)
        return OwnFolder("networks", lambda folder: save_networks(folder, self.names, config.networks, networks, self.prompts,
                                                                  data.graph.views, sizes, config.network))

    def pictures(self, folder: Path) -> list[Path]:
        """Draw who taught over the run, the networks' accuracy, and the graph by who teaches."""
        from lightning_modules.freekd.pictures import draw  # plotting takes long to import

        if self.taught is None and self.holds_parts:
            return []  # this process cannot ask alone
        place, teachers = self.taught or self.teachers()
        return draw(folder, self.names, place.edges, teachers)

    def on_train_end(self) -> None:
        """Ask while all processes are here: networks whose weights are spread answer only together."""
        if self.holds_parts:
            self.taught = self.teachers()

    @torch.no_grad()
    def teachers(self) -> tuple[Place, Tensor | None]:
        """Return B of the whole graph, and the network that teaches there by the agent's or rule's preference, (|B|,) or None."""
        assert self.networks is not None
        batch = next(iter(self.trainer.datamodule.val_dataloader())).to(self.device)  # type: ignore[attr-defined]
        place = self.place(batch)
        with self.resting(), in_pieces(self, self.config.edges_at_once):
            seen = step.see(self.outputs(self.networks, self.features(batch), batch, None), place, self.multi_label)
        return place, step.preferred(self.config.distil, self.agent, seen, place)
