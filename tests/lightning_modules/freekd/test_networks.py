import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GAT, GCN, GATConv, GCN2Conv, GCNConv, GINConv, GraphSAGE, SAGEConv

from lightning_modules.freekd.networks import KINDS, NetworkConfig, drop, make_network, project

NODES, FEATURES, CLASSES = 40, 90, 5


@pytest.fixture
def graph():
    """Bag-of-words features, dense and sparse, and edges with self loops, repeats in both directions and isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    dense = (torch.rand(NODES, FEATURES, generator=generator) < 0.08) * torch.rand(NODES, FEATURES, generator=generator)
    edges = torch.randint(0, NODES - 5, (2, 150), generator=generator).unique(dim=1)
    return dense, dense.to_sparse_csr(), edges


def network(name, **values):
    torch.manual_seed(3)
    return make_network(name, FEATURES, CLASSES, NetworkConfig(hidden=16, heads=4, **values)).eval()


def layers_of_pyg(name):
    return {"gcn": lambda: GCNConv(FEATURES, 16), "sage": lambda: SAGEConv(FEATURES, 16), "gat": lambda: GATConv(FEATURES, 4, heads=4),
            "gin": lambda: GINConv(torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)),
                                   train_eps=True)}[name]()


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gin"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_first_layer_equals_the_dense_layer_of_pyg_in_value_and_gradient(graph, name, sparse):
    dense, compressed, edges = graph
    ours = network(name)
    ours = (ours.encoder if name == "gin" else ours).convs[0]
    theirs = layers_of_pyg(name)
    theirs.load_state_dict(ours.state_dict())
    if name == "gin":
        with torch.no_grad():
            ours.eps.fill_(0.3), theirs.eps.fill_(0.3)
    ours, theirs = ours.double(), theirs.double()
    got, expected = ours((compressed if sparse else dense).double(), edges), theirs(dense.double(), edges)
    torch.testing.assert_close(got, expected)
    target = torch.randn_like(expected)
    for output in (got, expected):
        (output * target).sum().backward()
    for (key, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_network_gives_the_same_on_sparse_and_on_dense_features(graph, name):
    dense, compressed, edges = graph
    z, logits = network(name)(compressed, edges)
    again = network(name)(dense, edges)
    torch.testing.assert_close(z, again[0])
    torch.testing.assert_close(logits, again[1])
    assert z.shape == (NODES, 16)
    assert logits.shape == (NODES, CLASSES)


@pytest.mark.parametrize(("name", "kind", "options"), [
    ("gcn", GCN, {}), ("sage", GraphSAGE, {}), ("gat", GAT, {"heads": 1, "act": "elu"})])
@pytest.mark.parametrize("layers", [2, 3])
def test_a_stack_of_convolutions_is_a_plain_model_of_pyg_with_the_same_names_of_weights(graph, name, kind, options, layers):
    dense, compressed, edges = graph
    torch.manual_seed(3)
    ours = make_network(name, FEATURES, CLASSES, NetworkConfig(hidden=16, heads=1, layers=layers)).eval()
    theirs = kind(FEATURES, 16, layers, CLASSES, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(compressed, edges)[1], theirs(dense, edges))


def test_gcnii_follows_its_equation(graph):
    dense, _, edges = graph
    ours = network("gcnii", gcnii_layers=3, gcnii_alpha=0.2, gcnii_theta=0.7)
    full = torch.eye(NODES)
    loops = edges[0] == edges[1]
    full[edges[1][~loops], edges[0][~loops]] = 1.0
    degree = full.sum(1)
    smooth = full / (degree[:, None] * degree[None]).sqrt()
    first = h = torch.relu(F.linear(dense, ours.encoder.first.weight, ours.encoder.first.bias))
    for layer, conv in enumerate(ours.encoder.convs, start=1):
        assert isinstance(conv, GCN2Conv)
        beta = torch.log(torch.tensor(0.7 / layer + 1))
        mixed = 0.8 * smooth @ h + 0.2 * first
        h = torch.relu((1 - beta) * mixed + beta * mixed @ conv.weight1)
    z, logits = ours(dense, edges)
    torch.testing.assert_close(z, h)
    torch.testing.assert_close(logits, ours.head(h))


def test_z_is_what_the_classifier_reads(graph):
    dense, _, edges = graph
    for name in ("gcn", "sage", "gat"):
        net = network(name)
        z, logits = net(dense, edges)
        torch.testing.assert_close(net.convs[-1](z, edges), logits)
    for name in ("gin", "gcnii", "mlp"):
        net = network(name)
        z, logits = net(dense, edges)
        torch.testing.assert_close(net.head(z), logits)


def test_an_mlp_sees_no_edge(graph):
    dense, _, edges = graph
    net = network("mlp")
    assert torch.equal(net(dense, edges)[1], net(dense, edges[:, :0])[1])


@pytest.mark.parametrize("name", KINDS)
def test_a_node_without_neighbours_gets_finite_values_and_gradients(name):
    net = network(name)
    z, logits = net(torch.eye(3, FEATURES), torch.empty(2, 0, dtype=torch.long))
    logits.sum().backward()
    assert z.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_dropout_on_sparse_features_keeps_zeros_and_scales_what_is_left(graph):
    _, compressed, _ = graph
    torch.manual_seed(0)
    dropped = drop(compressed, 0.5, True)
    kept = dropped.values() != 0
    torch.testing.assert_close(dropped.values()[kept], 2 * compressed.values()[kept])
    assert 0.35 < kept.float().mean() < 0.65
    torch.testing.assert_close(drop(compressed, 0.5, False).to_dense(), compressed.to_dense())


def test_projection_of_sparse_features_equals_the_dense_product(graph):
    dense, compressed, _ = graph
    weight = torch.randn(7, FEATURES)
    torch.testing.assert_close(project(compressed, weight), dense @ weight.t())


def test_the_gat_of_ppi_has_four_wide_heads_a_layer_six_averaged_heads_and_linear_skips():
    net = make_network("gat", 50, 121, NetworkConfig(hidden=1024, heads=4, layers=3, output_heads=6, residual=True, dropout=0.0,
                                                     attention_dropout=0.0))
    first, second, last = net.convs
    assert (first.heads, first.out_channels, second.in_channels) == (4, 256, 1024)
    assert (last.heads, last.concat, last.out_channels) == (6, False, 121)
    assert all(conv.res is not None for conv in net.convs)
    z, logits = net(torch.randn(6, 50), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert z.shape == (6, 1024)
    assert logits.shape == (6, 121)


@pytest.mark.parametrize(("values", "key"), [
    ({"hidden": 0}, "hidden"), ({"layers": 1}, "layers"), ({"dropout": 1.0}, "dropout"), ({"hidden": 20, "heads": 8}, "hidden"),
    ({"gcnii_alpha": 2.0}, "gcnii_alpha"), ({"gcnii_theta": 0.0}, "gcnii_theta")])
def test_values_out_of_range_are_refused_by_name(values, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        NetworkConfig(**values)


def test_a_wrong_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"module\.networks: must be of gcn, sage, gat, gin, gcnii, mlp, not gnc"):
        make_network("gnc", 3, 2, NetworkConfig())
