"""The base networks: PyG's layers, an encoder and a classifier each, whose first layer multiplies sparse features as such.

Every network maps node features (n, F) and edges (2, E), source to target, to its encoding z (n, d) and its logits (n, C). A stack of
convolutions (GCN, GraphSAGE, GAT) classifies with its last one, so z is that layer's input; GIN, GCNII and the MLP end in a linear
layer, and z is what that reads. Bag-of-words features are mostly zeros: as a sparse CSR tensor they meet the first layer's weight before
the neighbours are summed. Both are linear, so the outcome is that of the dense layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCN2Conv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn.dense import Linear

NetworkName = Literal["gcn", "sage", "gat", "gin", "gcnii", "mlp"]


@dataclass(frozen=True)
class NetworkConfig:
    hidden: int = 64
    """width of the hidden layers; of a GAT, all heads together"""
    layers: int = 2
    """layers of a network, the classifying one included (GIN: convolutions before its classifier)"""
    dropout: float = 0.5
    """share of a layer's inputs that training leaves out"""
    heads: int = 8
    """attention heads of a GAT's hidden layers"""
    output_heads: int = 1
    """attention heads of a GAT's last layer, averaged"""
    attention_dropout: float = 0.5
    """share of a GAT's attention weights that training leaves out"""
    residual: bool = False
    """add a linear skip to each layer of a GAT, as on PPI"""
    gcnii_layers: int = 8
    """convolutions of a GCNII"""
    gcnii_alpha: float = 0.1
    """share of the first encoding in each convolution of a GCNII"""
    gcnii_theta: float = 0.5
    """how far the convolutions of a GCNII lie from the identity: convolution l by log(theta / l + 1)"""

    def __post_init__(self) -> None:
        for name, least in (("hidden", 1), ("layers", 2), ("heads", 1), ("output_heads", 1), ("gcnii_layers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must lie in 0..1, below 1, not {getattr(self, name)}")
        if not 0 <= self.gcnii_alpha <= 1:
            raise ValueError(f"gcnii_alpha: must lie in 0..1, not {self.gcnii_alpha}")
        if self.gcnii_theta <= 0:
            raise ValueError(f"gcnii_theta: must be above 0, not {self.gcnii_theta}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden: must be a multiple of heads = {self.heads}, not {self.hidden}")


@dataclass(frozen=True)
class Shifted:
    """Features with a prompt, x + shares tokens, which are never multiplied out: a first layer takes both apart."""

    x: Tensor  # (n, F), dense or sparse CSR
    shares: Tensor  # (n, T)
    tokens: Tensor  # (T, F)

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def size(self, dim: int) -> int:
        """Return the length of one side, which PyG's GCN asks for."""
        return self.x.size(dim)

    def dense(self) -> Tensor:
        """Return the features as one matrix, (n, F)."""
        return (self.x if self.x.layout == torch.strided else self.x.to_dense()) + self.shares @ self.tokens

    def constant(self) -> "Shifted":
        """Return the features as they now are: no gradient reaches the prompt, and its next step leaves them alone."""
        return Shifted(self.x, self.shares.detach(), self.tokens.detach().clone())


Features = Tensor | Shifted


def project(x: Features, weight: Tensor) -> Tensor:
    """Multiply features (n, F), dense, sparse CSR or shifted by a prompt, with a weight (d, F): (n, d)."""
    if isinstance(x, Shifted):
        return project(x.x, weight) + x.shares @ (x.tokens @ weight.t())
    return F.linear(x, weight) if x.layout == torch.strided else torch.sparse.mm(x, weight.t())


def drop(x: Any, share: float, training: bool) -> Any:
    """Apply dropout to features, dense or sparse CSR: zeros stay zeros, so only stored values are drawn for; a prompt stays whole."""
    if isinstance(x, Shifted):
        return Shifted(drop(x.x, share, training), x.shares, x.tokens)
    if x.layout == torch.strided or not training or share == 0:
        return F.dropout(x, share, training)
    values = F.dropout(x.values(), share)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


class SparseLinear(Linear):
    """PyG's linear layer, for features that may be sparse CSR."""

    def forward(self, x: Features) -> Tensor:
        out = project(x, self.weight)
        return out if self.bias is None else out + self.bias


class SparseSAGEConv(SAGEConv):
    """PyG's GraphSAGE layer (mean), its weight applied before the mean where that is cheaper: W mean(x_j) = mean(W x_j)."""

    def forward(self, x: Features, edge_index: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.layout == torch.strided and self.in_channels <= self.out_channels:
            return super().forward(x, edge_index)
        h = project(x, self.lin_l.weight)  # (n, d)
        return self.propagate(edge_index, x=(h, h), size=None) + self.lin_l.bias + project(x, self.lin_r.weight)


class SparseGATConv(GATConv):
    """PyG's GAT layer, which needs a prompt multiplied out."""

    def forward(self, x: Features, edge_index: Tensor) -> Tensor:
        return super().forward(x if isinstance(x, Tensor) else x.dense(), edge_index)


class SparseGINConv(GINConv):
    """PyG's GIN layer, with the first weight of its MLP applied before the sum over neighbours."""

    def forward(self, x: Features, edge_index: Tensor) -> Tensor:
        first, *rest = self.nn
        h = project(x, first.weight)  # (n, d)
        out = self.propagate(edge_index, x=(h, h), size=None) + (1 + self.eps) * h + first.bias
        for layer in rest:
            out = layer(out)
        return out


class Convolutions(nn.Module):
    """Layers of PyG, the last of which classifies; z is its input."""

    def __init__(self, layers: Sequence[nn.Module], activation: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(layers)
        self.activation, self.dropout = activation, dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        z = x
        for conv in self.convs[:-1]:
            z = self.activation(conv(drop(z, self.dropout, self.training), edge_index))
        return z, self.convs[-1](drop(z, self.dropout, self.training), edge_index)


def _widths(num_features: int, num_classes: int, config: NetworkConfig) -> list[tuple[int, int]]:
    widths = [num_features, *[config.hidden] * (config.layers - 1), num_classes]
    return list(pairwise(widths))


def _gcn(num_features: int, num_classes: int, config: NetworkConfig) -> nn.Module:
    layers = [GCNConv(*widths) for widths in _widths(num_features, num_classes, config)]
    layers[0].lin = _sparse(layers[0].lin)
    return Convolutions(layers, torch.relu, config.dropout)


def _sage(num_features: int, num_classes: int, config: NetworkConfig) -> nn.Module:
    layers = [SparseSAGEConv(*widths) for widths in _widths(num_features, num_classes, config)]
    return Convolutions(layers, torch.relu, config.dropout)


def _gat(num_features: int, num_classes: int, config: NetworkConfig) -> nn.Module:
    shared = {"dropout": config.attention_dropout, "residual": config.residual}
    *hidden, (width, _) = _widths(num_features, num_classes, config)
    layers = [SparseGATConv(before, after // config.heads, heads=config.heads, **shared) for before, after in hidden]
    layers.append(GATConv(width, num_classes, heads=config.output_heads, concat=False, **shared))
    layers[0].lin = _sparse(layers[0].lin)
    if config.residual:
        layers[0].res = _sparse(layers[0].res)
    return Convolutions(layers, F.elu, config.dropout)


def _sparse(layer: Linear) -> SparseLinear:
    """Make a layer of PyG read sparse features; its weights stay the same."""
    layer.__class__ = SparseLinear
    return layer


class Classified(nn.Module):
    """An encoder with a linear classifier behind it; z is the encoder's output."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x, edge_index)
        return z, self.head(F.dropout(z, self.dropout, self.training))


class GIN(nn.Module):
    """GIN convolutions (Xu et al. 2019), an MLP of two layers in each: h_i = MLP((1 + eps) x_i + sum of x_j), eps learnt."""

    def __init__(self, num_features: int, config: NetworkConfig) -> None:
        super().__init__()
        widths = [num_features, *[config.hidden] * config.layers]
        self.convs = nn.ModuleList(SparseGINConv(_two_layers(*pair), train_eps=True) for pair in pairwise(widths))
        self.dropout = config.dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(drop(x, self.dropout, self.training), edge_index))
        return x


class GCNII(nn.Module):
    """Deep graph convolutions with a share of the first encoding in each and weights near the identity (Chen et al. 2020)."""

    def __init__(self, num_features: int, config: NetworkConfig) -> None:
        super().__init__()
        self.first = SparseLinear(num_features, config.hidden)
        self.convs = nn.ModuleList(
            GCN2Conv(config.hidden, config.gcnii_alpha, config.gcnii_theta, layer) for layer in range(1, config.gcnii_layers + 1))
        self.dropout = config.dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first = x = torch.relu(self.first(drop(x, self.dropout, self.training)))
        for conv in self.convs:
            x = torch.relu(conv(F.dropout(x, self.dropout, self.training), first, edge_index))
        return x


class MLP(nn.Module):
    """Linear layers that see no edge, and so show what the features are worth alone."""

    def __init__(self, num_features: int, config: NetworkConfig) -> None:
        super().__init__()
        widths = [num_features, *[config.hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList(SparseLinear(*pair) for pair in pairwise(widths))
        self.dropout = config.dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(drop(x, self.dropout, self.training)))
        return x


def _two_layers(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after))


def _headed(encoder: type[nn.Module]) -> Callable[[int, int, NetworkConfig], nn.Module]:
    return lambda num_features, num_classes, config: Classified(
        encoder(num_features, config), config.hidden, num_classes, config.dropout)


KINDS: dict[str, Callable[[int, int, NetworkConfig], nn.Module]] = {
    "gcn": _gcn, "sage": _sage, "gat": _gat, "gin": _headed(GIN), "gcnii": _headed(GCNII), "mlp": _headed(MLP)}


def make_network(name: str, num_features: int, num_classes: int, config: NetworkConfig) -> nn.Module:
    """Build a network by name, its weights drawn from torch's generator; forward(x, edge_index) gives z (n, d) and logits (n, C)."""
    if name not in KINDS:
        raise ValueError(f"module.networks: must be of {', '.join(KINDS)}, not {name}")
    return KINDS[name](num_features, num_classes, config)
