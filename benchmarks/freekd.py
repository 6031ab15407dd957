"""What does FreeKD cost? An epoch beside two plain networks, the reward and the structure loss beside the forms that they replace.

    python benchmarks/freekd.py [--root FOLDER] [--rounds 2]

One process and one CPU thread. Contenders take turns, so that a disturbance of the machine meets all of them; medians are compared, and
times are those of the process. An epoch is a step on the whole graph, without validation. With FOLDER, that of the graphs as PyG lays them
out, Cora and Coauthor Physics are used, else the generated graph. The tables go into RESULTS.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from optimizer_step import Goal, judged, peak_temporary_bytes, table
from results import write_section
from torch import Tensor

from datamodules.freekd import FreekdData, FreekdDataConfig
from datamodules.graphs import GraphBatch
from lightning_modules.freekd.losses import structure_losses
from lightning_modules.freekd.networks import NetworkConfig, make_network
from lightning_modules.freekd.reward import paper_rewards
from lightning_modules.freekd.structure import LocalEdges, cosines, edges_within

NETWORKS, WARM_UP, GAMMA, WIDTH = ("gcn", "sage"), 2, 0.5, 64
PLAIN, ALONE, TRAIN, ALL = "two plain networks", "launcher, nothing taught", "FreeKD, labelled nodes", "FreeKD, all nodes"
LAUNCHED = {ALONE: ("module.distil.direction=none",), TRAIN: ("module.distil.nodes=train",), ALL: ("module.distil.nodes=all",)}
EPOCH = Goal("epoch / two plain networks", 2.0)


@dataclass(frozen=True)
class Setting:
    """A graph, and how many epochs a turn on it has."""

    name: str
    split: str
    epochs: int


def settings(root: str | None) -> list[Setting]:
    """List the graphs that there are."""
    return [Setting("Cora", "full", 30), Setting("Physics", "random", 6)] if root else [Setting("planted", "random", 30)]


def data_section(setting: Setting, root: str | None, cache: Path) -> dict[str, Any]:
    place = {"root": root, "cache": str(cache)} if root else {}
    return {"name": setting.name, "split": setting.split, **place}


class Watch(Callback):
    """Note when each step of training ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(time.process_time())


def per_epoch(ends: list[float]) -> float:
    """Average the seconds between the ends of epochs, the first ones left out."""
    return (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)


def plain_turn(batch: GraphBatch, num_classes: int, epochs: int) -> float:
    """Train two networks side by side in the plainest loop and return the seconds of an epoch."""
    torch.manual_seed(1)
    networks = [make_network(name, batch.x.shape[1], num_classes, NetworkConfig()) for name in NETWORKS]
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=5e-4) for network in networks]
    ends = []
    for _ in range(epochs):
        for network, optimizer in zip(networks, optimizers):
            optimizer.zero_grad()
            logits = network(batch.x, batch.edge_index)[1]
            F.cross_entropy(logits[batch.train_mask], batch.y[batch.train_mask]).backward()
            optimizer.step()
        ends.append(time.process_time())
    return per_epoch(ends)


def launched_turn(words: tuple[str, ...], section: dict[str, Any], epochs: int, folder: Path) -> float:
    """Train as `fivefold train` does, with all callbacks, but without twins and validation; return the seconds of an epoch."""
    from pipelines.build import build
    from pipelines.config import compose

    config = compose(["method=freekd", "logger=csv", *(f"data.{name}={value}" for name, value in section.items()),
                      f"module.networks=[{','.join(NETWORKS)}]", "module.compare_base=false", *words, f"trainer.max_steps={epochs}",
                      "trainer.limit_val_batches=0", "trainer.log_every_n_steps=10", "trainer.threads=1", "trainer.accelerator=cpu"])
    folder.mkdir(parents=True)
    built, watch = build(config, folder), Watch()
    built.trainer.callbacks.append(watch)
    built.trainer.fit(built.module, datamodule=built.data)
    return per_epoch(watch.ends)


@dataclass
class Epochs:
    """Seconds of an epoch of each contender, turn by turn."""

    setting: Setting
    facts: dict[str, int]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def over(self, name: str, base: str) -> float:
        """Return the median over turns of one contender's time over that of another in the same turn."""
        return statistics.median(own / other for own, other in zip(self.seconds[name], self.seconds[base], strict=True))


def measure_epochs(setting: Setting, section: dict[str, Any], rounds: int, folder: Path) -> Epochs:
    """Let all contenders take turns on one graph."""
    data = FreekdData(FreekdDataConfig(**section))
    data.setup()
    batch = next(iter(data.val_dataloader()))
    found = Epochs(setting, data.facts, {name: [] for name in (PLAIN, *LAUNCHED)})
    for turn in range(rounds):
        found.seconds[PLAIN].append(plain_turn(batch, data.num_classes, setting.epochs))
        for number, (name, words) in enumerate(LAUNCHED.items()):
            place = folder / f"{setting.name}-{turn}-{number}"
            found.seconds[name].append(launched_turn(words, section, setting.epochs, place))
    return found


@dataclass
class Compared:
    """Seconds, and peak bytes where they matter, of ours and of the form that it replaces; how far their results differ at most."""

    nodes: int
    edges: int
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    difference: float = 0.0
    bytes: tuple[int, int] = (0, 0)

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.peer)


def timed(work: Callable[[], Any], seconds: list[float]) -> Any:
    """Do the work and note the seconds of the process."""
    start = time.process_time()
    result = work()
    seconds.append(time.process_time() - start)
    return result


def rewards_by_masks(ce: Tensor, edges: LocalEdges, gamma: float, nodes: Tensor) -> Tensor:
    """Find R_i of some nodes, (m,), each by a mask over all edges."""
    total = ce.sum(0)
    found = []
    for node in nodes.tolist():
        around = total[edges.neighbour[edges.centre == node]]
        found.append(-total.mean() - gamma * (around.mean() if len(around) else 0.0))
    return torch.stack(found)


def measure_reward(edges: LocalEdges, rounds: int, sample: int = 300) -> Compared:
    """Find the rewards of all nodes, and by masks those of a sample, whose time is multiplied up."""
    torch.manual_seed(0)
    ce, everywhere = torch.rand(2, edges.nodes), torch.ones(edges.nodes, dtype=torch.bool)
    nodes = torch.randperm(edges.nodes)[:sample]
    found = Compared(edges.nodes, len(edges.centre))
    for _ in range(rounds):
        ours = timed(lambda: paper_rewards(ce, everywhere, edges, GAMMA, ce.sum(0).mean()), found.ours)
        peer = timed(lambda: rewards_by_masks(ce, edges, GAMMA, nodes), found.peer)
        found.peer[-1] *= edges.nodes / len(nodes)
        found.difference = float((ours[nodes] - peer).abs().max())
    return found


def cosines_by_gathering(z: Tensor, edges: LocalEdges) -> Tensor:
    """Find g(z_i, z_j), (E,), from both ends' vectors of all edges at once, (E, d) each."""
    unit = F.normalize(z, dim=-1)
    return (unit[edges.centre] * unit[edges.neighbour]).sum(-1)


def structure_gradients(edges: LocalEdges, cosine: Callable[[Tensor, LocalEdges], Tensor]) -> Tensor:
    """Go forward and back through the structure loss of two networks over all edges; return the gradients, (2, |B|, d)."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(edges.nodes, WIDTH, generator=generator).requires_grad_() for _ in range(2)]
    teacher = torch.randint(2, (edges.nodes,), generator=generator)
    kept, carried = teacher[edges.centre] == teacher[edges.neighbour], torch.ones(edges.nodes)
    structure_losses(torch.stack([cosine(own, edges) for own in z]), kept, edges, teacher, carried, tau=1.0).sum().backward()
    return torch.stack([own.grad for own in z if own.grad is not None])


def measure_structure(edges: LocalEdges, rounds: int) -> Compared:
    """Compare time, peak memory and gradients of the structure loss with those of the form that gathers."""
    found = Compared(edges.nodes, len(edges.centre))
    for _ in range(rounds):
        ours = timed(lambda: structure_gradients(edges, cosines), found.ours)
        peer = timed(lambda: structure_gradients(edges, cosines_by_gathering), found.peer)
        found.difference = float((ours - peer).abs().max() / peer.abs().max())
    one, other = (peak_temporary_bytes(lambda form=form: structure_gradients(edges, form), torch.device("cpu"))
                  for form in (cosines, cosines_by_gathering))
    found.bytes = (one, other)
    return found


def report(epochs: list[Epochs], reward: Compared, structure: Compared) -> str:
    """Write the tables of one run."""
    names = (PLAIN, *LAUNCHED)
    times = [[f"{one.setting.name}, {one.facts['nodes']:,} nodes, {one.facts['train']:,} labelled",
              *(f"{1000 * statistics.median(one.seconds[name]):.1f}" for name in names)] for one in epochs]
    ratios = [[one.setting.name, *(judged(EPOCH, one.over(name, PLAIN)) for name in (TRAIN, ALL)),
               *(f"{one.over(name, ALONE):.2f}" for name in (TRAIN, ALL))] for one in epochs]
    over = [f"{name}, {EPOCH.name} (goal ≤ {EPOCH.limit})" for name in (TRAIN, ALL)]
    return "\n\n".join([
        f"**An epoch, ms**\n\n{table(['graph', *names], times)}",
        table(["graph", *over, *(f"{name} / {ALONE}" for name in (TRAIN, ALL))], ratios),
        f"**Rewards of all nodes**\n\n{reward_table(reward)}",
        f"**Structure loss of two networks, forward and back, d = {WIDTH}**\n\n{structure_table(structure)}"])


def reward_table(found: Compared) -> str:
    ours, peer = found.medians
    return table(["nodes", "edges", "ours, ms", "a mask of edges a node, ms", "faster by", "largest difference"],
                 [[f"{found.nodes:,}", f"{found.edges:,}", f"{1000 * ours:.2f}", f"{1000 * peer:,.0f}", f"{peer / ours:,.0f}",
                   f"{found.difference:.1e}"]])


def structure_table(found: Compared) -> str:
    (ours, peer), (held, peer_held) = found.medians, found.bytes
    return table(["edges", "ours, ms", "gathered, ms", "ratio", "ours, peak MiB", "gathered, peak MiB", "ratio", "gradients differ by"],
                 [[f"{found.edges:,}", f"{1000 * ours:.1f}", f"{1000 * peer:.1f}", f"{ours / peer:.2f}", f"{held / 2**20:.1f}",
                   f"{peer_held / 2**20:.1f}", f"{held / peer_held:.2f}", f"{found.difference:.1e}"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder with Cora/raw and Physics/raw; without it the generated graph is used")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/fivefold").expanduser())
    parser.add_argument("--rounds", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(1)
    chosen = settings(words.root)
    sections = [data_section(setting, words.root, words.cache) for setting in chosen]
    with tempfile.TemporaryDirectory() as folder:
        epochs = [measure_epochs(setting, section, words.rounds, Path(folder)) for setting, section in zip(chosen, sections)]
    data = FreekdData(FreekdDataConfig(**sections[-1]))
    data.setup()
    edges = edges_within(data.graph.edge_index, torch.arange(data.num_nodes), data.num_nodes)
    text = report(epochs, measure_reward(edges, words.rounds), measure_structure(edges, words.rounds))
    print(text)
    write_section("freekd", text)


if __name__ == "__main__":
    main()
