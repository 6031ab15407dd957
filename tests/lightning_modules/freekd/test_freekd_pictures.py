"""The drawing of a graph: which part of a large one is shown."""

import networkx as nx
import numpy as np

from lightning_modules.freekd.pictures import _near


def test_the_part_that_is_drawn_are_the_nodes_nearest_to_the_busiest_one():
    """Against networkx: no node that is left out is nearer than one that is shown."""
    edges = np.random.default_rng(0).integers(200, size=(2, 320))
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(200))
    graph.add_edges_from(edges.T.tolist())
    shown = _near(edges, 200, 40)
    assert graph.degree[shown[0]] == max(dict(graph.degree).values())
    away = nx.single_source_shortest_path_length(graph, shown[0])
    assert len(set(shown.tolist())) == 40
    assert [away[node] for node in shown] == sorted(away.values())[:40]


def test_a_small_graph_is_drawn_as_far_as_it_hangs_together():
    assert sorted(_near(np.array([[0, 1, 3], [1, 2, 4]]), 5, 400).tolist()) == [0, 1, 2]
