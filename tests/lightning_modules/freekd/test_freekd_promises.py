"""What FreeKD promises on real graphs: a gain where labels are few, no harm where they are many, and a step that fits into memory."""

from pathlib import Path

import pytest
import torch
from optimizer_step import peak_temporary_bytes

from lightning_modules.freekd import step
from lightning_modules.freekd.agent import Agent, AgentSection

GRAPHS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "graphs"
needs_graphs = pytest.mark.skipif(not GRAPHS.is_dir(), reason="needs ../shared/data/graphs, which lies beside the project")


def gain(here, tmp_path, cache, experiment, seed):
    """Train and return the test gain over the twins, in points."""
    done = here("train", f"experiment={experiment}", f"data.root={GRAPHS}", f"data.cache={cache}", f"run.root={tmp_path}", "logger=csv",
                f"run.name={seed}", f"run.seed={seed}", "trainer.threads=1", "trainer.max_steps=120", "trainer.val_every_n_steps=2")
    assert done.returncode == 0, done.stderr
    (found,) = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("test/gain")]
    return 100 * found


@pytest.mark.slow
@needs_graphs
def test_the_agent_gains_two_points_where_labels_are_few(here, tmp_path, cache):
    gains = [gain(here, tmp_path, cache, "freekd_citeseer_public", seed) for seed in range(1, 7)]
    assert sum(gains) / 6 > 2


@pytest.mark.slow
@needs_graphs
def test_the_papers_setting_does_no_harm_where_labels_are_many(here, tmp_path, cache):
    gains = [gain(here, tmp_path, cache, "freekd_cora", seed) for seed in range(1, 7)]
    assert sum(gains) / 6 > -0.2


def step_as_large_as_physics():
    """Make what a step does beside the networks: K = 2, d = 64, on a random graph of Coauthor Physics' size, forward and back."""
    nodes, links, width, classes = 34_493, 495_924, 64, 5
    torch.manual_seed(0)
    edges, y = torch.randint(nodes, (2, links)), torch.randint(classes, (nodes,))
    place = step.place_of(edges, y, torch.rand(nodes) < 0.5, nodes, True)
    agent, config = Agent([width] * 2, 3, 2, AgentSection()), step.DistilSection(nodes="all")
    z, logits = ([torch.randn(nodes, size, requires_grad=True) for _ in range(2)] for size in (width, classes))

    def once():
        seen = step.see(list(zip(z, logits)), place, False)
        cosine = step.cosines_of(seen, place.edges)
        decision = step.decide(config, agent, seen, cosine, place, torch.rand(nodes, 2))
        found = step.lessons(config, seen, cosine, place, decision, False)
        told, _ = step.judge(step.RewardSection(), agent, decision, seen, place, None, lambda v, m: v[m].mean())
        ((found.ce + found.node + found.structure).sum() + step.agent_loss(agent, told, 0.01)[0]).backward()

    return once


@pytest.mark.slow
def test_a_step_on_half_a_million_edges_never_holds_a_vector_for_each_edge():
    """Which would be 667 MiB: two networks, 64 numbers an edge, forward and backward."""
    once = step_as_large_as_physics()
    once()
    assert peak_temporary_bytes(once, torch.device("cpu")) / 2**20 < 300
