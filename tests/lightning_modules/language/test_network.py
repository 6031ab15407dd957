"""Building language models of every class: fresh, pretrained, with adapters; and refusing in one line what cannot work."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from lightning_modules.language.llama import new_llama
from lightning_modules.language.lora import LoraSection, attention_projections
from lightning_modules.language.network import Recipe, blocks_of, build, fresh_sizes
from lightning_modules.language.pretrained import Keys
from lightning_modules.language.t5 import new_t5

KEYS = Keys(model="module.student", length="data.max_tokens", layout="data.layout")
FRESH = Recipe("debug", None, vocab_size=61, block_size=24, eos_token_id=1, pad_token_id=0, keys=KEYS)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
                                      attn_pdrop=0))


def qwen():
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2, max_position_embeddings=24))


MODELS = {"llama": lambda: new_llama("debug", 61, 24), "gpt2": gpt2, "qwen": qwen, "t5": lambda: new_t5("debug", 61, 1, 0)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of each class."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().save_pretrained(root / name)
    return root


def built(recipe, seed=0):
    torch.manual_seed(seed)
    model, give_weights = build(recipe, None)
    give_weights()
    return model


def pretrained(folders, name, **more):
    return replace(FRESH, pretrained=str(folders / name), seq2seq=name == "t5", **more)


def logits(model, seed=1):
    tokens = torch.randint(2, 61, (2, 9), generator=torch.Generator().manual_seed(seed))
    more = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **more).logits


def gradients(model):
    logits(model.train()).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seq2seq", [False, True])
def test_a_seed_gives_the_same_fresh_weights_and_another_seed_others(seq2seq):
    recipe = replace(FRESH, seq2seq=seq2seq)
    one, again, other = (logits(built(recipe, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("seq2seq", [False, True])
def test_every_size_starts_at_a_loss_near_that_of_guessing(seq2seq):
    for size in fresh_sizes(seq2seq)[:2]:
        found = logits(built(replace(FRESH, size=size, seq2seq=seq2seq)))
        loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), torch.randint(61, (18,)))
        assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), abs=4)  # an untied head of T5 starts above 30


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_of_every_class_is_loaded_as_transformers_loads_it(folders, name):
    model = built(pretrained(folders, name))
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    assert torch.equal(logits(model.eval()), logits(kind.from_pretrained(folders / name)))
    assert blocks_of(model)


@pytest.mark.parametrize(("name", "layers"), [
    ("llama", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
    ("qwen", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
    ("gpt2", {"attn.c_attn", "attn.c_proj"}),
    ("t5", {f"{part}.{layer}" for part in ("SelfAttention", "EncDecAttention") for layer in "qkvo"}),
])
def test_adapters_go_to_all_projections_of_attention_and_nowhere_else(folders, name, layers):
    assert set(attention_projections(MODELS[name]())) == layers
    model = built(pretrained(folders, name, lora=LoraSection(rank=2)))
    adapted = {".".join(name.split(".")[-5:-3]) for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == layers
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert torch.allclose(logits(model.eval()), logits(built(pretrained(folders, name)).eval()), atol=1e-5)


def test_alpha_is_twice_the_rank_unless_told(folders):
    scales = [next(iter(built(pretrained(folders, "qwen", lora=LoraSection(**lora))).peft_config.values())).lora_alpha
              for lora in ({"rank": 3}, {"rank": 3, "alpha": 5.0})]
    assert scales == [6, 5.0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [0, 2])
def test_recomputing_activations_changes_no_gradient(folders, name, rank):
    lora = LoraSection(rank=rank, dropout=0.0)
    kept, again = (gradients(built(pretrained(folders, name, lora=lora, gradient_checkpointing=on))) for on in (False, True))
    assert kept
    for key in kept | again:
        assert torch.allclose(kept[key], again[key], rtol=0, atol=1e-5 * kept[key].abs().max().item())  # summed in another order


def test_frozen_weights_are_kept_in_the_type_that_they_are_multiplied_in(folders):
    lora = LoraSection(rank=2)
    types = {p.dtype for p in built(pretrained(folders, "llama", lora=lora, precision="bf16-mixed")).parameters() if not p.requires_grad}
    assert types == {torch.bfloat16}
    assert {p.dtype for p in built(pretrained(folders, "llama", precision="bf16-mixed")).parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "wrong", "message"), [
    ("t5", {"seq2seq": False}, r"module\.student: \S+ is an encoder-decoder language model; set data\.layout=seq2seq"),
    ("llama", {"seq2seq": True}, r"module\.student: \S+ is a causal language model; set data\.layout=causal"),
    ("t5", {"seq2seq": False, "keys": Keys()}, r"module\.pretrained: \S+ is an encoder-decoder .*; give a causal language model"),
    ("gpt2", {"block_size": 25}, r"data\.max_tokens: \S+ was made for 24 positions, not 25; set data\.max_tokens=24"),
    ("t5", {"vocab_size": 62}, r"module\.student: \S+ has 61 embeddings but the tokenizer has 62 ids; set data\.tokenizer=\S+"),
    ("none", {}, r"module\.student: \S+ cannot be loaded \(.*\); give a model's folder, or its name on the Hub"),
    ("llama", {"lora": LoraSection(rank=2, targets=["query"])}, r"module\.lora\.targets: no linear layer is called query; choose from .*"),
])
def test_what_cannot_work_is_refused_in_one_line_that_names_the_option(folders, name, wrong, message):
    (folders / "none").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=rf"^{message}$"):
        built(replace(pretrained(folders, name), **wrong))


def test_t5_takes_sequences_longer_than_those_it_was_made_for(folders):
    assert built(pretrained(folders, "t5", block_size=4096)).config.is_encoder_decoder  # relative positions have no end


def test_a_decoder_that_does_not_start_with_padding_is_refused(folders, tmp_path):
    model = new_t5("debug", 61, 1, 0)
    model.config.decoder_start_token_id = 2
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^module\.student: \S+ does not start its decoder with padding as T5 does"):
        built(replace(FRESH, pretrained=str(tmp_path), seq2seq=True))
