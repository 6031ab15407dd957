"""What predicts the answer from embeddings: a fresh T5 in the student's tokens, or a pretrained one in its own."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from lightning_modules.kpod.weighting.network import WeightingNetwork
from lightning_modules.kpod.weighting.predictor import SIZES, FreshPredictor, PretrainedPredictor, make_predictor
from lightning_modules.kpod.weighting.prefixes import Prefixes, whole

VOCABULARY = 19
STEPS = torch.tensor([[-1, -1, 0, 0, 1], [-2, -1, 0, 1, -2]])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small T5 in a folder, as it would come from the Hub."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
                                        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)).save_pretrained(folder)
    return str(folder)


def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    return {"input_ids": torch.randint(2, VOCABULARY, STEPS.shape, generator=generator), "steps": STEPS, "labels": labels}


def test_a_student_of_the_same_model_is_read_as_its_own_tokens(pretrained):
    """With every token kept, the loss is that of transformers for the tokens themselves, closed by the end of a text."""
    model = T5ForConditionalGeneration.from_pretrained(pretrained)
    net, data = WeightingNetwork(model.get_input_embeddings().weight.detach().clone(), pretrained, 4, 8), batch()
    assert isinstance(net.predictor.bridge, torch.nn.Identity)
    embedded = net.logits(data)[1]
    found = net.answer_nll(data, embedded, torch.ones(2, 5), Prefixes(torch.tensor([0, 0, 1]), torch.tensor([3, 2, 0])))
    for nll, row, tokens in zip(found, (0, 0, 1), (data["input_ids"][0], data["input_ids"][0, :4], data["input_ids"][1, 1:2])):
        labels = data["labels"][row][data["labels"][row] != -100]
        theirs = model(input_ids=torch.cat([tokens, torch.tensor([1])])[None], labels=labels[None]).loss * len(labels)
        assert nll.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_another_student_comes_over_a_bridge_at_the_size_that_the_predictor_is_used_to(pretrained):
    torch.manual_seed(0)
    student = torch.randn(500, 40) * 0.02
    predictor = make_predictor(student, pretrained)
    assert isinstance(predictor, PretrainedPredictor)
    assert predictor.bridge(student).std().item() == pytest.approx(predictor.model.get_input_embeddings().weight.std().item(), rel=0.1)


@pytest.mark.parametrize("kind", ["tiny", "pretrained"])
def test_every_trainable_number_of_the_network_gets_a_gradient(kind, pretrained):
    torch.manual_seed(0)
    net, data = WeightingNetwork(torch.randn(VOCABULARY, 12), pretrained if kind == "pretrained" else kind, 8, 8), batch()
    logits, embedded = net.logits(data)
    net.loss(data, embedded, logits.sigmoid(), whole(STEPS), 0.5).total.backward()
    without = [name for name, parameter in net.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not without, "processes that train together wait for every gradient"
    assert net.embedding.grad is None


def test_a_fresh_predictor_is_causal_in_the_answer():
    torch.manual_seed(0)
    embedding = torch.randn(VOCABULARY, 12)
    predictor = FreshPredictor(embedding, SIZES["tiny"])
    seen, attended = torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)
    nll = [predictor(embedding, seen, attended, torch.tensor([labels])) for labels in ([3, 4, 5], [3, 4, -100], [3, -100, -100])]
    assert nll[0] > nll[1] > nll[2] > 0
    one, two = predictor(embedding, seen, attended, torch.tensor([[3, 4]])), predictor(embedding, seen, attended, torch.tensor([[3, 9]]))
    assert not torch.equal(one, two)
    everything = torch.stack([predictor(embedding, seen, attended, torch.tensor([[3, token]])) for token in range(VOCABULARY)])
    assert torch.logsumexp(-(everything - nll[2]), 0).item() == pytest.approx(0, abs=1e-4), "probabilities of the second token sum to 1"


def test_the_heads_of_a_fresh_encoder_look_at_the_neighbours():
    torch.manual_seed(0)
    predictor = FreshPredictor(torch.randn(VOCABULARY, 12), SIZES["tiny"])
    attention = predictor.model.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(20, 20)[0]
    for head, distance in enumerate((-1, 1, -2, 2, -3, 3)):
        assert (bias[head, 5:15].argmax(-1) == torch.arange(5, 15) + distance).all()


def test_a_predictor_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^module\.weighting\.predictor: .*nowhere cannot be loaded"):
        make_predictor(torch.randn(4, 4), str(tmp_path / "nowhere"))
