"""Equations 1.3 to 1.7 of the method against small cases computed by hand, number by number."""

import math

import pytest
import torch

from datamodules.task_order import EventBatch
from lightning_modules.otgnet.attention import NeighbourAttention
from lightning_modules.otgnet.bottleneck import Bottleneck, Club, Mine, Queue
from lightning_modules.otgnet.encoding import TimeEncoding, unit_of_time
from lightning_modules.otgnet.gate import GateSection, count_votes, differ, taken_class
from lightning_modules.otgnet.heads import Heads
from lightning_modules.otgnet.losses import class_shares, classification
from lightning_modules.otgnet.memory import Memory, is_last, keys_of
from lightning_modules.otgnet.model import OpenModel
from lightning_modules.otgnet.network import HeldBack, NetworkSection
from lightning_modules.otgnet.view import Surroundings, look


def test_ages_are_encoded_by_cosines_from_1_to_1e_9_and_never_below_zero():
    found = TimeEncoding(5)(torch.tensor([1000, -3, 10**9]))
    assert found[0].tolist() == pytest.approx([math.cos(1000 * 10 ** (-9 * k / 4)) for k in range(5)], abs=1e-6)
    assert found[1].tolist() == [1.0] * 5
    assert found[2, 4] == pytest.approx(math.cos(1.0), abs=1e-6)


def test_the_frequencies_are_not_trained_and_know_seconds_beyond_float32():
    encoding = TimeEncoding(5)
    assert not list(encoding.parameters())
    late = encoding(torch.tensor([2**40, 2**40 + 1]))
    assert not torch.equal(late[0], late[1])


def test_the_unit_of_time_is_the_median_gap_and_scales_ages():
    assert unit_of_time(torch.tensor([0, 0, 10, 30, 60])) == 20.0
    assert unit_of_time(torch.tensor([4, 4])) == 1.0
    assert torch.allclose(TimeEncoding(3, 20.0)(torch.tensor([40])), TimeEncoding(3)(torch.tensor([2])))


def memory_of(nodes=5, width=2):
    return Memory(torch.zeros(nodes, width), torch.full((nodes,), -1), torch.full((nodes,), -1))


def test_the_last_event_of_a_node_wins_whatever_the_order_of_the_rows():
    rows = torch.arange(8.0).view(4, 2)
    node, key = torch.tensor([1, 2, 2, 1]), keys_of(torch.tensor([7, 9]))  # events 7: 1-2, 9: 2-1
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        memory = memory_of()
        memory.write(node[order], key[order], rows[order])
        assert memory.rows[1].tolist() == rows[3].tolist()  # the destination of event 9
        assert memory.rows[2].tolist() == rows[1].tolist()  # the source of event 9
        assert memory.written.tolist() == [-1, 19, 18, -1, -1]


def test_an_older_event_does_not_overwrite_what_a_later_one_wrote():
    memory = memory_of()
    memory.write(torch.tensor([3, 4]), keys_of(torch.tensor([8])), torch.ones(2, 2))
    memory.write(torch.tensor([3, 0]), keys_of(torch.tensor([5])), torch.full((2, 2), 9.0))
    assert memory.rows[3].tolist() == [1.0, 1.0]
    assert memory.rows[0].tolist() == [9.0, 9.0]


def test_a_memory_is_saved_by_what_was_written_and_comes_back_whole():
    memory = Memory.fresh(50, 4, seed=3)
    memory.write(torch.tensor([7, 9]), keys_of(torch.tensor([2])), torch.ones(2, 4))
    memory.predict(torch.tensor([7, 9]), keys_of(torch.tensor([2])), torch.tensor([1, 0]))
    state = memory.state_dict()
    assert len(state["rows"]) == 2
    again = Memory.of(state)
    for name in ("rows", "written", "predicted"):
        assert torch.equal(getattr(again, name), getattr(memory, name))
    assert not torch.equal(Memory.fresh(50, 4, seed=4).rows, Memory.fresh(50, 4, seed=3).rows)


def test_a_loop_at_one_node_keeps_the_row_of_its_destination():
    memory = memory_of()
    memory.write(torch.tensor([3, 3]), keys_of(torch.tensor([0])), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    assert memory.rows[3].tolist() == [2.0, 2.0]
    assert is_last(torch.tensor([3, 3]), torch.tensor([0, 1]), 5).tolist() == [False, True]


def attention_of(masked=True):
    made = NeighbourAttention(2, 1, 0.0, masked)
    with torch.no_grad():
        made.key.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        made.query.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        made.key_time.weight.copy_(torch.tensor([[0.5], [0.0]]))
        made.score.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
    return made


@pytest.mark.parametrize("masked", [True, False])
def test_attention_weighs_neighbours_as_by_hand(masked):
    made = attention_of(masked)
    u, centre = torch.tensor([[[9.0, 9.0], [1.0, -1.0], [0.5, 2.0]]]), torch.tensor([[1.0, 2.0]])
    age, mask = torch.tensor([[[1.0], [1.0], [-1.0]]]), torch.tensor([[False, True, True]])
    q = (1 * 1 + 2 * 1, 2)
    k = [(uj[0] + 0.5 * a[0], 2 * uj[1]) for uj, a in zip(u[0].tolist(), age[0].tolist())]
    e = [q[0] - q[1] + 2 * kj[0] + kj[1] for kj in k]
    weight = [math.exp(x if x > 0 else 0.2 * x) for x in e]
    weight[0] *= not masked
    expected = [sum(w * kj[d] for w, kj in zip(weight, k)) / sum(weight) for d in (0, 1)]
    assert made(centre, made.keys(u), age, mask)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_node_without_neighbours_gathers_nothing_and_passes_no_gradient():
    made = attention_of()
    u = torch.randn(1, 3, 2, requires_grad=True)
    found = made(torch.randn(1, 2), made.keys(u), torch.randn(1, 3, 1), torch.zeros(1, 3, dtype=torch.bool))
    found.sum().backward()
    assert found.tolist() == [[0.0, 0.0]]
    assert u.grad.abs().sum() == 0


def test_what_stands_in_an_empty_slot_does_not_matter():
    made, mask = attention_of(), torch.tensor([[False, True, True]])
    u, age = torch.randn(1, 3, 2), torch.randn(1, 3, 1)
    other = u.clone()
    other[0, 0] = 1e6
    centre = torch.randn(1, 2)
    assert torch.equal(made(centre, made.keys(u), age, mask), made(centre, made.keys(other), age, mask))


def test_an_unknown_class_is_voted_on_then_predicted_then_open():
    known, predicted = torch.tensor([2, -1, -1, -1]), torch.tensor([0, 0, 1, -1])
    votes = count_votes(torch.tensor([[0, 0, 1], [3, 3, 1], [-1, -1, -1], [-1, -1, -1]]), 4)
    assert votes.tolist() == [[2, 1, 0, 0], [0, 1, 0, 2], [0] * 4, [0] * 4]
    assert taken_class(known, predicted, votes, "vote").tolist() == [2, 3, 1, -1]
    assert taken_class(known, predicted, votes, "prediction").tolist() == [2, 0, 1, -1]
    assert taken_class(known, predicted, votes, "same").tolist() == [2, -1, -1, -1]
    assert differ(torch.tensor([2, 2, -1, 2]), torch.tensor([2, 1, 1, -1])).tolist() == [False, True, False, False]


def test_club_is_the_mean_of_the_spec_computed_sample_by_sample():
    torch.manual_seed(0)
    club, z, order = Club(3, 4), torch.randn(5, 3), torch.tensor([3, 0, 4, 1, 2])
    y = torch.eye(4)[torch.tensor([0, 1, 2, 0, 1])]
    opened = torch.tensor([True, True, True, False])
    total = 0.0
    for i in range(5):
        mu, s = club.mu(z[i]).detach(), torch.tanh(club.log_variance(z[i])).detach()
        for d in range(3):
            total += float(((mu[d] - y[order[i], d]) ** 2 - (mu[d] - y[i, d]) ** 2) / (torch.exp(s[d]) + 1e-6))
    assert float(club.bound(z, y, y[order], opened)) == pytest.approx(total / 2 / 5, rel=1e-5)


def test_club_bounds_a_known_information_from_above_and_mine_from_below():
    """Z = Y + noise over two classes: I(Z;Y) lies below ln 2, and is near it where the noise is small."""
    torch.manual_seed(0)
    label = torch.randint(2, (2000,))
    x = torch.cat([torch.nn.functional.one_hot(label, 2) + 0.05 * torch.randn(2000, 2), torch.randn(2000, 6)], -1)
    made = Bottleneck(8, 2)
    made.code = torch.nn.Identity()
    optimizer = torch.optim.Adam([*made.club.parameters(), *made.mine.parameters()], 0.01)
    for step in range(200):
        bounds = made.bounds(x, label, torch.ones(2, dtype=torch.bool), 1.0, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        bounds.estimators.backward()
        optimizer.step()
    assert float(bounds.club) > math.log(2)
    other = torch.randn(2000, 8)  # independent of x
    assert float(made.mine.bound(x, other, torch.randperm(2000))) < 0.15


def test_mine_is_the_donsker_varadhan_bound_by_hand():
    torch.manual_seed(1)
    mine, x, z, drawn = Mine(2), torch.randn(4, 2), torch.randn(4, 2), [2, 2, 0, 1]

    def score(one, two):
        return mine.score(torch.cat([one, two])).item()

    expected = sum(score(x[i], z[i]) for i in range(4)) / 4 - math.log(sum(math.exp(score(x[i], z[drawn[i]])) for i in range(4)) / 4)
    assert float(mine.bound(x, z, torch.tensor(drawn))) == pytest.approx(expected, abs=1e-5)


def test_code_and_estimators_learn_from_their_own_losses_only():
    made = Bottleneck(4, 3)
    args = (torch.randn(16, 4), torch.randint(3, (16,)), torch.ones(3, dtype=torch.bool), 0.3, torch.Generator().manual_seed(0))
    made.bounds(*args).code.backward()
    assert all(p.grad.abs().sum() > 0 for p in made.code.parameters())
    assert all(p.grad is None for part in (made.club, made.mine) for p in part.parameters())
    made.zero_grad()
    made.bounds(*args).estimators.backward()
    assert all(p.grad is None for p in made.code.parameters())
    assert all(p.grad is not None for part in (made.club, made.mine) for p in part.parameters())


def test_training_the_code_takes_the_class_out_and_keeps_the_rest():
    """x = (class, another coin): after training, a linear reader finds the coin in the code and not the class."""
    torch.manual_seed(0)
    label, coin = torch.randint(2, (1024,)), torch.randint(2, (1024,))
    x = torch.stack([2.0 * label - 1, 2.0 * coin - 1, torch.randn(1024), torch.randn(1024)], -1)
    made, opened = Bottleneck(4, 2), torch.ones(2, dtype=torch.bool)
    rates = ((made.code, 0.002), (made.club, 0.01), (made.mine, 0.01))
    optimizers = [torch.optim.Adam(part.parameters(), rate) for part, rate in rates]
    for step in range(800):
        bounds = made.bounds(x, label, opened, 0.3, torch.Generator().manual_seed(step))
        (bounds.code + bounds.estimators).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    z = made(x)
    z = torch.cat([z, torch.ones(1024, 1)], -1)

    def read(target):
        signs = 2.0 * target[:, None] - 1
        return float(((z @ torch.linalg.lstsq(z, signs).solution).sign() == signs).float().mean())

    assert read(coin) > 0.9
    assert read(label) < 0.75


def test_the_queue_forgets_the_oldest():
    queue = Queue(4, 1)
    queue.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2, 3]))
    queue.add(torch.tensor([[4.0], [5.0]]), torch.tensor([4, 5]))
    x, label = queue.sample(9, torch.Generator().manual_seed(0))
    assert sorted(label.tolist()) == [2, 3, 4, 5] == sorted(x.view(-1).int().tolist())
    again = Queue(4, 1)
    again.load_state_dict(queue.state_dict())
    queue.add(torch.tensor([[6.0]]), torch.tensor([6]))
    again.add(torch.tensor([[6.0]]), torch.tensor([6]))
    assert torch.equal(queue.label, again.label)


def test_closed_classes_have_no_share_and_their_weights_no_gradient():
    heads = Heads(3, [[4, 0], [2], [1]], 6)
    logits = heads(torch.randn(5, 3), 2)
    assert logits.isinf().any(0).tolist() == [False, True, False, True, False, True]
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 4, 2, 2, 0])).backward()
    assert [float(w.grad.abs().sum()) > 0 for w in heads.weight] == [True, True, False]
    x = torch.randn(2, 3)
    assert float(heads(x, 3)[1, 0]) == pytest.approx(float(heads.weight[0][1] @ x[1] + heads.bias[0][1]), rel=1e-5)


def test_within_its_task_a_label_competes_with_its_siblings_only():
    heads = Heads(3, [[4, 0], [2, 1]], 5)
    found = heads.within_task(torch.zeros(2, 5), torch.tensor([0, 1]))
    assert found.isinf().tolist() == [[False, True, True, True, False], [True, False, False, True, True]]


def test_a_label_competes_with_open_classes_or_its_siblings_held_against_how_often_each_comes():
    heads, logits = Heads(3, [[0, 1], [2]], 4), torch.tensor([[1.0, 0.0, 2.0, -math.inf], [0.5, 0.0, 0.0, -math.inf]])
    label, shares = torch.tensor([0, -1]), torch.tensor([0.5, 0.25, 0.25, 0.0])
    e = math.exp
    among = -math.log(e(1) / (e(1) + e(0) + e(2)))
    siblings = -math.log(e(1) / (e(1) + e(0)))
    assert classification(logits, label, heads, "open", None).tolist() == pytest.approx([among, 0.0], rel=1e-5)
    assert classification(logits, label, heads, "task", None).tolist() == pytest.approx([siblings, 0.0], rel=1e-5)
    assert classification(logits, label, heads, "both", None).tolist() == pytest.approx([(among + siblings) / 2, 0.0], rel=1e-5)
    raised = -math.log(0.5 * e(1) / (0.5 * e(1) + 0.25 * e(0) + 0.25 * e(2)))
    assert classification(logits, label, heads, "open", shares).tolist() == pytest.approx([raised, 0.0], rel=1e-5)


def test_shares_count_known_labels_only():
    assert class_shares(torch.tensor([2, 0, -1, 2, 2]), 4).tolist() == [0.25, 0.0, 0.75, 0.0]
    assert class_shares(torch.tensor([-1]), 2).tolist() == [0.0, 0.0]


def test_what_processes_held_back_is_put_into_one_order_without_doubles():
    parts = [HeldBack(torch.tensor([[5.0], [9.0]]), torch.tensor([1, 2]), torch.tensor([5, 9])),
             HeldBack(torch.tensor([[3.0], [5.0]]), torch.tensor([0, 1]), torch.tensor([3, 5]))]
    found = HeldBack.ordered(parts)
    assert found.key.tolist() == [3, 5, 9]
    assert found.x.view(-1).tolist() == [3.0, 5.0, 9.0]
    assert found.label.tolist() == [0, 1, 2]


class Listed:
    """Neighbours by a plain loop over events."""

    def __init__(self, src, dst):
        self.events = list(zip(src.tolist(), dst.tolist()))

    def last(self, nodes, before, n):
        neighbour, event = torch.zeros(len(nodes), n, dtype=torch.int64), torch.zeros(len(nodes), n, dtype=torch.int64)
        mask = torch.zeros(len(nodes), n, dtype=torch.bool)
        for row, (node, limit) in enumerate(zip(nodes.tolist(), before.tolist())):
            seen = [(d if s == node else s, i) for i, (s, d) in enumerate(self.events[:limit]) if node in (s, d)][-n:]
            for place, (other, i) in enumerate(seen, n - len(seen)):
                neighbour[row, place], event[row, place], mask[row, place] = other, i, True
        return neighbour, event, mask


def small(known, gate=None, n=2):
    src, dst, t = torch.tensor([0, 0, 3, 0]), torch.tensor([1, 2, 0, 4]), torch.tensor([0, 5, 7, 9])
    around = Surroundings(Listed(src, dst), t, torch.randn(5, 3), torch.tensor(known), 3)
    batch = EventBatch(torch.tensor([3]), src[3:], dst[3:], t[3:])
    return look(batch, around, Memory.fresh(5, 4, 0), n, 2, gate or GateSection()), around


def test_a_view_holds_the_most_recent_neighbours_their_ages_and_what_is_gated():
    view, _ = small([0, 0, 1, 0, 2])
    names = torch.unique(torch.cat([torch.tensor([0, 4]), torch.tensor([2, 3])]))
    assert names[view.neighbour[0]].tolist() == [2, 3]
    assert view.age[0].tolist() == [4, 2]
    assert view.mask.tolist() == [[True, True], [False, False]]
    assert view.gated.tolist() == [[True, False], [False, False]]
    assert view.crossed.tolist() == [True]
    assert view.votes.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]  # each end votes for the other
    assert float(view.gated_share) == 0.5


@pytest.mark.parametrize(("where", "gated", "crossed"), [("both", True, True), ("neighbours", True, False), ("events", False, True),
                                                          ("none", False, False)])
def test_the_gate_opens_where_it_is_told_to(where, gated, crossed):
    view, _ = small([0, 0, 1, 0, 2], GateSection(where))
    assert bool(view.gated.any()) is gated
    assert bool(view.crossed.any()) is crossed


def test_a_node_without_a_label_is_taken_for_what_its_neighbours_are():
    view, _ = small([-1, 0, 1, 1, 2])
    assert view.taken.tolist() == [1, 2]
    assert view.gated.any().item() is False


@pytest.mark.parametrize("backbone", ["otgnet", "tgn", "tgat", "mlp"])
@pytest.mark.parametrize("update", ["pair", "own"])
def test_every_backbone_gives_rows_and_logits_of_the_open_classes(backbone, update):
    view, around = small([0, 0, 1, 0, 2])
    torch.manual_seed(0)
    model = OpenModel(3, [[0, 1], [2]], 3, NetworkSection(backbone, hidden=4, classifier=6, update=update, dropout=0.0), False, 1.0)
    passed, logits = model(view, 1)
    assert passed.rows.shape == (2, 4)
    assert logits.isinf().tolist() == [[False, False, True]] * 2
    logits[:, :2].sum().backward()
    assert model.encoder.first.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.code.parameters())  # classification does not train the code
    assert around.known.tolist() == [0, 0, 1, 0, 2]


def test_an_update_is_the_equation_computed_node_by_node():
    view, _ = small([0, 0, 1, 0, 2])
    torch.manual_seed(0)
    model = OpenModel(3, [[0, 1, 2]], 3, NetworkSection("otgnet", hidden=4, classifier=6, dropout=0.0), False, 1.0).eval()
    passed, logits = model(view, 1)
    e, names = model.encoder, [0, 2, 3, 4]
    u = {node: e.project(torch.cat([view.rows[i], view.features[i]])) for i, node in enumerate(names)}
    u[2] = model.code(u[2])  # its class is not that of node 0
    a = e.attention
    k = [a.key(u[j]) + a.key_time(e.time(torch.tensor(age))) for j, age in ((2, 4), (3, 2))]
    scores = torch.stack([torch.nn.functional.leaky_relu(a.score[0] @ a.query(u[0]) + a.score[1] @ kj, 0.2) for kj in k]).softmax(0)
    m_src = model.code(scores[0] * k[0] + scores[1] * k[1])  # an event between classes
    m_dst = model.code(torch.zeros(4))  # no neighbours
    h = torch.cat([m_src, m_dst]).tanh()
    for row, place in ((0, 0), (1, 3)):
        new = e.update(torch.cat([view.rows[place], h])).tanh()
        assert torch.allclose(passed.rows[row], new, atol=1e-6)
        hidden = e.first(torch.cat([new, view.features[place]])).relu()
        assert torch.allclose(logits[row], model.heads(hidden[None], 1)[0] + 4 * view.votes[row].log1p(), atol=1e-5)
    assert sorted(passed.gated.label.tolist()) == [0, 1, 2]  # node 2, and both messages of the event


def test_a_message_passes_as_it_is_where_classes_are_the_same():
    config = NetworkSection("otgnet", hidden=4, classifier=6, dropout=0.0)
    torch.manual_seed(0)
    model = OpenModel(3, [[0, 1, 2]], 3, config, False, 1.0).eval()
    same, _ = small([1, 0, 1, 1, 1])
    free, _ = small([0, 0, 1, 0, 2], GateSection("none"))
    free.features, free.rows, free.votes = same.features, same.rows, same.votes
    assert torch.equal(model(same, 1)[1], model(free, 1)[1])
    assert len(model(same, 1)[0].gated.x) == 0
