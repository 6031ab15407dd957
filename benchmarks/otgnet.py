"""How fast is OTGNet? Training and evaluation beside PyG's TGN, and the parts that loops are slow at.

    python benchmarks/otgnet.py [--root FOLDER] [--rounds 2]

One process and one CPU thread; times are those of the process, and contenders take turns. Batches of 300 events, width 100, five
neighbours. With FOLDER, which holds events.csv, nodes.csv and tasks.json, its training events are walked through once, else those of the
generated stream. Ours is the launcher's own Trainer with all its callbacks; TGN is the loop of PyG's example with a classifier for both
ends of an event. The tables go into RESULTS.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from optimizer_step import table
from results import write_section
from torch import Tensor, nn
from torch_geometric.nn import TGNMemory, TransformerConv
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, LastNeighborLoader

from datamodules.opening import opening
from datamodules.otgnet import OtgnetData, OtgnetDataConfig
from datamodules.recency import RecentNeighbours
from datamodules.temporal import TemporalStream
from lightning_modules.otgnet.memory import Memory
from lightning_modules.otgnet.review import choose
from lightning_modules.otgnet.selection import greedy
from pipelines.build import build
from pipelines.config import compose

BATCH, WIDTH, NEIGHBOURS, WARM_UP = 300, 100, 5, 3
OURS = {"ours": (), "ours, nothing replayed": ("module.replay.kind=none",),
        "ours, no gate, nothing replayed": ("module.replay.kind=none", "module.gate.where=none")}
TGN = "PyG's TGN"
GOALS = {"train": 20_000, "evaluate": 60_000, "sampler": 5_000_000, "influence": 1_000, "greedy": 0.1}


class Watch(Callback):
    """Add up the time of training steps, without what is done between them; the first ones are left out."""

    def __init__(self) -> None:
        self.seconds, self.events, self.steps, self._began = 0.0, 0, 0, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if self.steps > WARM_UP:
            self.seconds += time.process_time() - self._began
            self.events += len(batch)


def config_of(words: tuple[str, ...]) -> Any:
    return compose(["method=otgnet", "logger=csv", "data.passes=1", *words, "trainer.threads=1", "trainer.accelerator=cpu"])


def trained(data: OtgnetData, words: tuple[str, ...], folder: Path) -> tuple[Any, Watch]:
    """Train once through all tasks as `fivefold train` does."""
    folder.mkdir(parents=True)
    built, watch = build(config_of(words), folder), Watch()
    built.trainer.callbacks.append(watch)
    built.trainer.fit(built.module, datamodule=data)
    return built.module, watch


def evaluated(module: Any, data: OtgnetData) -> float:
    """Walk through the training events of all tasks as an evaluation does; return events a second."""
    memory, events = module.fresh_memory(), 0
    began = time.process_time()
    for task in range(data.num_tasks):
        module.exams.walk(module.learner, task, "train", memory, task)
        events += len(data.events(task, "train"))
    return events / (time.process_time() - began)


class Tgn(nn.Module):
    """PyG's TGN with one head for all classes: memory, attention over the last neighbours, features beside the embedding."""

    def __init__(self, stream: TemporalStream) -> None:
        super().__init__()
        message = IdentityMessage(1, WIDTH, WIDTH)
        self.memory = TGNMemory(stream.num_nodes, 1, WIDTH, WIDTH, message_module=message, aggregator_module=LastAggregator())
        self.conv = TransformerConv(WIDTH, WIDTH // 2, heads=2, dropout=0.1, edge_dim=1 + WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH + stream.features.shape[1], 128), nn.ReLU(), nn.Linear(128, stream.num_classes))

    def forward(self, nodes: Tensor, edges: Tensor, t: Tensor, features: Tensor) -> Tensor:
        z, updated = self.memory(nodes)
        if edges.shape[1]:
            age = self.memory.time_enc((updated[edges[0]] - t).to(z.dtype))
            z = self.conv(z, edges, torch.cat([age, torch.zeros(len(t), 1)], -1))
        return self.head(torch.cat([z, features], -1))


def tgn_turn(data: OtgnetData, train: bool) -> float:
    """Walk through the training events of all tasks with TGN; return events a second."""
    torch.manual_seed(1)
    stream, known = data.stream, data.gate_label(data.num_tasks - 1)
    model, loader = Tgn(stream).train(train), LastNeighborLoader(stream.num_nodes, NEIGHBOURS)
    optimizer, place = torch.optim.Adam(model.parameters(), 1e-3), torch.empty(stream.num_nodes, dtype=torch.int64)
    seconds, events = 0.0, 0
    for number, event in enumerate(batches(data)):
        began = time.process_time()
        src, dst, t = stream.src[event], stream.dst[event], stream.t[event]
        with torch.set_grad_enabled(train):
            nodes, edges, at = loader(torch.cat([src, dst]).unique())
            place[nodes] = torch.arange(len(nodes))
            logits = model(nodes, edges, seen_times(at, stream, data), stream.features[nodes])
            ends = torch.cat([src, dst])
            loss = F.cross_entropy(logits[place[ends]], known[ends])
        if train:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.memory.update_state(src, dst, t, torch.zeros(len(t), 1))
        loader.insert(src, dst)
        model.memory.detach()
        if number >= WARM_UP:
            seconds, events = seconds + time.process_time() - began, events + len(event)
    return events / seconds


def seen_times(at: Tensor, stream: TemporalStream, data: OtgnetData) -> Tensor:
    """Return the times of the events that the loader has numbered in the order of their insertion."""
    return stream.t[training_events(data)[at]]


def training_events(data: OtgnetData) -> Tensor:
    return torch.cat([data.events(task, "train") for task in range(data.num_tasks)])


def batches(data: OtgnetData) -> Iterator[Tensor]:
    for task in range(data.num_tasks):
        yield from data.events(task, "train").split(BATCH)


def measure(data: OtgnetData, rounds: int, folder: Path) -> tuple[dict[str, dict[str, float]], Any]:
    """Return events a second of each contender, in training and evaluation, and a trained module."""
    rates: dict[str, dict[str, list[float]]] = {name: {"train": [], "evaluate": []} for name in (*OURS, TGN)}
    modules = {}
    for turn in range(rounds):
        for number, (name, words) in enumerate(OURS.items()):
            modules[name], watch = trained(data, words, folder / f"{turn}-{number}")
            rates[name]["train"].append(watch.events / watch.seconds)
            rates[name]["evaluate"].append(evaluated(modules[name], data))
        for kind in ("train", "evaluate"):
            rates[TGN][kind].append(tgn_turn(data, kind == "train"))
    return {name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in rates.items()}, modules["ours"]


def sampler_rate(stream: TemporalStream) -> float:
    """Return queries a second of both ends of batches of events, the five last neighbours each."""
    neighbours = RecentNeighbours(stream.src, stream.dst, stream.t, nodes=stream.num_nodes)
    queries = [(torch.cat([stream.src[e], stream.dst[e]]), torch.cat([e, e])) for e in torch.arange(len(stream.t)).split(BATCH)]
    began = time.process_time()
    for nodes, before in queries:
        neighbours.last(nodes, before, NEIGHBOURS)
    return 2 * len(stream.t) / (time.process_time() - began)


def selection_seconds(module: Any, data: OtgnetData) -> tuple[int, float, float]:
    """Choose what to keep of the largest task: its events, and seconds with and without what samples are worth."""
    task = max(range(data.num_tasks), key=lambda number: len(data.events(number, "train")))
    seconds = []
    for words in ((), ("module.replay.importance=none",)):
        section = config_of(words).module.config.replay
        before, after = module.fresh_memory(), module.progress.snapshots[task]
        began = time.process_time()
        choose(module.learner, module.exams, task, before, after, section, 1)
        seconds.append(time.process_time() - began)
    return len(data.events(task, "train")), seconds[0], seconds[1]


def greedy_seconds() -> float:
    """Choose 10 of 1000 candidates."""
    torch.manual_seed(0)
    importance, embedding = torch.rand(1000), torch.randn(1000, WIDTH)
    began = time.process_time()
    for _ in range(5):
        greedy(importance, embedding, 10, 20.0, 12.0)
    return (time.process_time() - began) / 5


def held_megabytes(events: int, nodes: int) -> tuple[float, float]:
    """Return what the neighbour lookup and the memory of a stream hold, in MB."""
    generator = torch.Generator().manual_seed(0)
    src, dst = torch.randint(nodes, (2, events), generator=generator)
    lookup, memory = RecentNeighbours(src, dst, torch.arange(events), nodes=nodes), Memory.fresh(nodes, WIDTH, 0)
    sizes = [sum(v.numel() * v.element_size() for v in vars(one).values() if isinstance(v, Tensor)) / 1e6 for one in (lookup, memory)]
    return sizes[0], sizes[1]


def growth(folder: Path) -> list[list[str]]:
    """Train on generated streams of several lengths: microseconds an event."""
    rows = []
    for nodes in (400, 800, 1600, 3200):
        data = OtgnetData(OtgnetDataConfig(passes=1), opening(0, "otg", nodes))
        data.setup()
        watch = trained(data, (), folder / f"growth-{nodes}")[1]
        rows.append([f"{len(training_events(data)):,}", f"{1e6 * watch.seconds / watch.events:.0f}"])
    return rows


def goal(kind: str, value: float, lower: bool = False) -> str:
    kept = value <= GOALS[kind] if lower else value >= GOALS[kind]
    return f"{value:,.3g} ({'kept' if kept else 'MISSED'})" if lower else f"{value:,.0f} ({'kept' if kept else 'MISSED'})"


def report(rates: dict[str, dict[str, float]], parts: list[list[str]], grown: list[list[str]]) -> str:
    rows = [[name, *(f"{kinds[kind]:,.0f}" for kind in kinds), *(f"{kinds[kind] / rates[TGN][kind]:.2f}" for kind in kinds)]
            for name, kinds in rates.items()]
    header = ["contender", "training, events a CPU-second", "evaluation", "training / TGN", "evaluation / TGN"]
    return "\n\n".join([table(header, rows), table(["part", "measured", "goal"], parts),
                        table(["training events of the stream", "microseconds an event"], grown)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder with events.csv, nodes.csv, tasks.json and features.npy")
    parser.add_argument("--rounds", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(1)
    source = {"source": "folder", "root": words.root} if words.root else {}
    data = OtgnetData(OtgnetDataConfig(passes=1, **source))
    data.setup()
    with tempfile.TemporaryDirectory() as scratch:
        rates, module = measure(data, words.rounds, Path(scratch))
        events, weighed, plain = selection_seconds(module, data)
        grown = growth(Path(scratch))
    ours = rates["ours"]
    lookup, memory = held_megabytes(1_000_000, 200_000)
    parts = [["training, events a CPU-second", goal("train", ours["train"]), f"≥ {GOALS['train']:,}"],
             ["evaluation, events a CPU-second", goal("evaluate", ours["evaluate"]), f"≥ {GOALS['evaluate']:,}"],
             ["neighbour lookup, queries a CPU-second", goal("sampler", sampler_rate(data.stream)), f"≥ {GOALS['sampler']:,}"],
             ["worth of samples, events a CPU-second", goal("influence", events / max(weighed - plain, 1e-9)), f"≥ {GOALS['influence']:,}"],
             [f"choosing what to keep of {events:,} events, CPU-seconds", f"{weighed:.2f}", ""],
             ["greedy, 10 of 1000, CPU-seconds", goal("greedy", greedy_seconds(), lower=True), f"≤ {GOALS['greedy']}"],
             ["lookup of 1M events among 200,000 nodes, MB", f"{lookup:.0f}", ""], ["memory of 200,000 nodes, MB", f"{memory:.0f}", ""]]
    text = report(rates, parts, grown)
    print(text)
    write_section("otgnet", text)


if __name__ == "__main__":
    main()
