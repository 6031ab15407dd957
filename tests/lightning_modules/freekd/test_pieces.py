"""Networks whose layers send their messages in pieces: the same logits, with fewer messages held."""

import pytest
import torch
from torch_geometric.nn import MessagePassing

from lightning_modules.freekd.networks import KINDS, NetworkConfig, make_network
from lightning_modules.freekd.pieces import _stretches, in_pieces

NODES, FEATURES, CLASSES = 60, 30, 4


@pytest.fixture
def graph():
    """Sparse features; directed edges in no order, self loops, a node with a third of all edges and nodes without any."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(NODES, FEATURES, generator=generator) < 0.1) * torch.rand(NODES, FEATURES, generator=generator)
    edges = torch.randint(0, NODES - 5, (2, 300), generator=generator)
    edges[1, ::3] = 7
    return x.to_sparse_csr(), edges.unique(dim=1)[:, torch.randperm(edges.unique(dim=1).shape[1], generator=generator)]


def network(name):
    torch.manual_seed(3)
    return make_network(name, FEATURES, CLASSES, NetworkConfig(hidden=16, heads=4, layers=3)).eval()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("most", [1, 17, 10_000])
def test_messages_in_pieces_give_the_encodings_and_logits_of_all_at_once(graph, name, most):
    own = network(name)
    expected = own(*graph)
    with torch.no_grad(), in_pieces(own, most):
        found = own(*graph)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert torch.equal(own(*graph)[1], expected[1])  # the layers are what they were


def test_no_piece_has_more_edges_than_allowed_unless_one_node_has_and_every_edge_comes_once(graph):
    counts = torch.bincount(graph[1][1], minlength=NODES)
    pieces = list(_stretches(counts.cumsum(0), 20))
    assert [node for nodes, _ in pieces for node in range(nodes.start, nodes.stop)] == list(range(NODES))
    assert [edge for _, edges in pieces for edge in range(edges.start, edges.stop)] == list(range(graph[1].shape[1]))
    sizes = [(edges.stop - edges.start, nodes.stop - nodes.start) for nodes, edges in pieces]
    assert all(size <= 20 or alone == 1 for size, alone in sizes)
    assert max(size for size, _ in sizes) > 20  # the busy node


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gin", "gcnii"])
def test_a_layer_never_holds_more_messages_than_a_piece(graph, name):
    own, held = network(name), []
    for layer in own.modules():
        if isinstance(layer, MessagePassing):
            layer.register_message_forward_hook(lambda layer, given, messages: held.append(len(messages)))
    with torch.no_grad():
        own(*graph)
        whole = max(held)
        held.clear()
        with in_pieces(own, 40):
            own(*graph)
    busiest = int(torch.bincount(graph[1][1]).max()) + 1  # its self loop
    assert max(held) <= max(40, busiest) < whole


def test_a_failure_inside_leaves_the_layers_as_they_were(graph):
    own = network("gat")
    with pytest.raises(ArithmeticError), in_pieces(own, 5):
        raise ArithmeticError
    assert all("propagate" not in vars(layer) for layer in own.modules())
