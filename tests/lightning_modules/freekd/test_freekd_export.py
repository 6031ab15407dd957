"""An exported network predicts what the run's own does, prompt included, and is a plain network of PyG's."""

import pytest
import torch
import torch_geometric
from safetensors.torch import load_file

from lightning_modules.freekd.export import load_network, save_networks
from lightning_modules.freekd.networks import KINDS, NetworkConfig, make_network
from lightning_modules.freekd.prompt import FeaturePrompt


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return torch.randn(20, 6), torch.unique(torch.randint(20, (2, 60)), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_comes_back_with_its_prompt_and_its_view(graph, kind, tmp_path):
    x, edges = graph
    config = NetworkConfig(hidden=8)
    network, prompt = make_network(kind, 6, 3, config).eval(), FeaturePrompt(6, 2)
    torch.nn.init.normal_(prompt.tokens)
    view = torch.tensor([[True, True, True, False, False, True]])
    save_networks(tmp_path, ["one"], [kind], [network], [prompt], view, (6, 3), config)
    again = load_network(tmp_path, "one")
    assert torch.equal(again(x, edges), network(prompt(x * view[0]), edges)[1])


@pytest.mark.parametrize(("kind", "plain"), [("gcn", torch_geometric.nn.GCN), ("sage", torch_geometric.nn.GraphSAGE)])
def test_the_weights_of_gcn_and_graphsage_are_those_of_pygs_own_models(graph, kind, plain, tmp_path):
    x, edges = graph
    config = NetworkConfig(hidden=8, layers=3)
    network = make_network(kind, 6, 3, config).eval()
    save_networks(tmp_path, ["one"], [kind], [network], [], None, (6, 3), config)
    model = plain(6, 8, 3, 3)
    model.load_state_dict(load_file(tmp_path / "one.safetensors"))
    assert torch.allclose(model.eval()(x, edges), load_network(tmp_path, "one")(x, edges), atol=1e-6)


def test_the_export_of_a_run_predicts_what_its_validation_counted(here, tmp_path):
    done = here("train", "experiment=freekd_debug", "data.name=planted-views", f"run.root={tmp_path}", "run.name=one", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    exported = here("export", f"run={tmp_path / 'one'}", f"to={tmp_path / 'out'}")
    assert exported.returncode == 0, exported.stderr
    assert "networks of one at step 8: " in exported.stdout
    from datamodules.freekd import FreekdData, FreekdDataConfig

    data = FreekdData(FreekdDataConfig("planted-views"))
    data.setup()
    graph = data.graph
    printed = dict(line.split() for line in done.stdout.splitlines() if line.startswith("val/micro_f1/"))
    for name in ("gcn1", "mlp2"):
        with torch.no_grad():
            right = load_network(tmp_path / "out", name)(graph.x, graph.edge_index).argmax(-1) == graph.y
        assert right[graph.valid].float().mean().item() == pytest.approx(float(printed[f"val/micro_f1/{name}"]), abs=1e-5)
