"""Trained networks as folders of safetensors, each with its prompt, and the way back to a plain module of PyG's layers.

    networks.json            how each network is built
    gcn1.safetensors, ...    its weights under the names of PyG's own models, and its prompt under prompt.*

`load_network(folder, "gcn1")(x, edge_index)` gives logits, with neither agent nor fivefold's launcher. Without a prompt, a GCN or
GraphSAGE is `torch_geometric.nn.GCN(F, hidden, layers, C)` or `GraphSAGE(...)` with these very weights.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_modules.freekd.networks import NetworkConfig, make_network
from lightning_modules.freekd.prompt import FeaturePrompt

RECIPES = "networks.json"


class Prompted(nn.Module):
    """A network behind the features that it sees and the prompt that it learnt, if any."""

    view: Tensor | None

    def __init__(self, network: nn.Module, prompt: FeaturePrompt | None, view: Tensor | None) -> None:
        super().__init__()
        self.network, self.prompt = network, prompt
        self.register_buffer("view", view)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return logits (n, C) of features (n, F), dense or sparse CSR, and edges (2, E), source above target."""
        seen = x if self.view is None else x * self.view
        return self.network(seen if self.prompt is None else self.prompt(seen), edge_index)[1]


def save_networks(folder: Path, names: Sequence[str], kinds: Sequence[str], networks: nn.ModuleList, prompts: nn.ModuleList,
                  views: Tensor | None, sizes: tuple[int, int], config: NetworkConfig) -> None:
    """Write networks called `names`, of `kinds`, into a folder; `prompts` are none or one each, `sizes` the features and classes.

    Where the graph comes in views, (V, F) bool, network k sees the features of view k mod V.
    """
    recipes = {}
    for k, (name, kind, network) in enumerate(zip(names, kinds, networks, strict=True)):
        weights = dict(network.state_dict())
        if prompts:
            weights |= {f"prompt.{key}": value for key, value in prompts[k].state_dict().items()}
        if views is not None:
            weights["view"] = views[k % len(views)]
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}, folder / f"{name}.safetensors")
        recipes[name] = {"kind": kind, "num_features": sizes[0], "num_classes": sizes[1], "config": asdict(config)}
    (folder / RECIPES).write_text(json.dumps(recipes, indent=2) + "\n")


def load_network(folder: Path, name: str) -> Prompted:
    """Return a network of an exported folder, ready to predict; KeyError for a name that `networks.json` lacks."""
    recipe = json.loads((folder / RECIPES).read_text())[name]
    weights = load_file(folder / f"{name}.safetensors")
    network = make_network(recipe["kind"], recipe["num_features"], recipe["num_classes"], NetworkConfig(**recipe["config"]))
    view, prompt = weights.pop("view", None), None
    if "prompt.tokens" in weights:
        prompt = FeaturePrompt(recipe["num_features"], len(weights["prompt.tokens"]))
        prompt.load_state_dict({key.removeprefix("prompt."): weights.pop(key) for key in list(weights) if key.startswith("prompt.")})
    network.load_state_dict(weights)
    return Prompted(network, prompt, view if view is None else view.to(torch.bool)).eval()
