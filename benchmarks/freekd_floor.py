"""How good are plain networks, tuned as usual and trained alone? The floor that a gain of FreeKD must be counted from.

    python benchmarks/freekd_floor.py --root FOLDER_OF_GRAPHS

Protocol: Adam, learning rate 0.01, weight decay 5e-4, two layers of 64, dropout 0.5 (GAT: 8 heads of 8), at most --epochs epochs on the
whole graph; the epoch with the best validation micro-F1 counts, ties by validation loss. A run is a seed of the weights on a fixed split,
or one of a set's own splits. No test label is read before the epoch is chosen.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.freekd import FreekdData, FreekdDataConfig
from datamodules.graphs import GraphBatch
from lightning_modules.freekd.networks import NetworkConfig, make_network


@dataclass(frozen=True)
class Setting:
    """A graph with its split and edges; `splits`: how many splits it comes with, 1 where seeds vary instead."""

    label: str
    name: str
    split: str = "auto"
    symmetric: bool = False
    splits: int = 1


SETTINGS = (
    Setting("Cora full", "Cora", "full"),
    Setting("CiteSeer full", "CiteSeer", "full"),
    Setting("Chameleon directed", "chameleon", splits=10),
    Setting("Chameleon symmetrised", "chameleon", symmetric=True, splits=10),
    Setting("Texas directed", "texas", splits=10),
    Setting("Texas symmetrised", "texas", symmetric=True, splits=10),
    Setting("Cora public", "Cora", "public"),
    Setting("CiteSeer public", "CiteSeer", "public"),
)


def trained(network: str, batch: GraphBatch, num_classes: int, seed: int, epochs: int, patience: int) -> Tensor:
    """Train one network and return its logits (n, C) at the best epoch."""
    torch.manual_seed(seed)
    model = make_network(network, batch.x.shape[1], num_classes, NetworkConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    best, logits_then, since = (-1.0, 0.0), torch.empty(0), 0
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        logits = model(batch.x, batch.edge_index)[1]
        F.cross_entropy(logits[batch.train_mask], batch.y[batch.train_mask]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(batch.x, batch.edge_index)[1]
        score = (accuracy(logits, batch.y, batch.valid_mask), -F.cross_entropy(logits[batch.valid_mask], batch.y[batch.valid_mask]).item())
        since += 1
        if score > best:
            best, logits_then, since = score, logits, 0
        if since >= patience:
            break
    return logits_then


def accuracy(logits: Tensor, y: Tensor, mask: Tensor) -> float:
    return 100 * (logits.argmax(1) == y)[mask].float().mean().item()


def figures(setting: Setting, networks: list[str], words: argparse.Namespace) -> None:
    """Print mean and sample deviation of each network on one setting."""
    runs = min(words.runs, setting.splits) if setting.splits > 1 else words.runs
    for network in networks:
        began, scores = time.perf_counter(), []
        for run in range(runs):
            index = run if setting.splits > 1 else 0
            data = FreekdData(FreekdDataConfig(setting.name, root=words.root, split=setting.split, split_index=index,
                                               symmetric=setting.symmetric, cache=words.cache, normalize=words.normalize))
            data.setup()
            batch = next(iter(data.val_dataloader()))
            logits = trained(network, batch, data.num_classes, run, words.epochs, words.patience)
            scores.append(accuracy(logits, batch.y, batch.test_mask))
        spread = statistics.stdev(scores) if runs > 1 else float("nan")
        print(f"| {setting.label} | {network} | {statistics.mean(scores):.2f} ± {spread:.2f} ({runs}) | "
              f"{(time.perf_counter() - began) / runs:.1f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with Cora/raw, CiteSeer/raw, chameleon/geom_gcn/raw and texas/raw")
    parser.add_argument("--cache", default="~/.cache/fivefold")
    parser.add_argument("--only", default="", help="settings whose labels contain one of these, comma-separated")
    parser.add_argument("--networks", default="gcn,sage,gat")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--patience", type=int, default=100)
    parser.add_argument("--normalize", default="rows", choices=["auto", "rows", "none"],
                        help="features as they are (none) make GraphSAGE on Chameleon some points better and GCN worse")
    words = parser.parse_args()
    torch.set_num_threads(1)
    print("| setting | network | test micro-F1 % (runs) | time a run |\n| --- | --- | --- | --- |")
    for setting in SETTINGS:
        if any(part in setting.label.lower() for part in words.only.lower().split(",")):
            figures(setting, words.networks.split(","), words)


if __name__ == "__main__":
    main()
