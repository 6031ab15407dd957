"""Training samples of made problems, tokenised for a causal or an encoder-decoder student, and such students with random weights."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from datamodules.collation import Form, FullBatches, TrainingBatches, full_batches
from datamodules.curriculum import Curriculum
from datamodules.problems import problems
from datamodules.samples import Wording, make_samples
from datamodules.tokenization import train_tokenizer


def samples_in(folder, layout="causal", count=40):
    """Return samples, and a function from indices and a batch size to batches in which nothing is given."""
    wording = Wording(layout)
    rows = problems({"train": count}, 4, 0)
    tokenizer = train_tokenizer([" ".join(wording.parts(row)) for row in rows], 400, for_answers=True)
    samples, _ = make_samples(folder / "samples", rows, wording, tokenizer, 1000)
    dataset = FullBatches(TrainingBatches(Curriculum(samples), Form(layout, tokenizer.eos_token_id, tokenizer.pad_token_id)))
    return samples, lambda indices, size=8: full_batches(dataset, indices, size)


def student(layout="causal"):
    torch.manual_seed(0)
    if layout == "causal":
        return GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=512)).eval()
    return T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=1,
                                               eos_token_id=0, decoder_start_token_id=1)).eval()


def logits_of(model):
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return lambda batch: model(**{name: batch[name] for name in names if name in batch}).logits
