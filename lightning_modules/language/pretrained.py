"""Language models that others have trained, from the Hub or a folder: whole, or only their shapes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Keys:
    """The options that messages name; each method has its own."""

    model: str = "module.pretrained"
    length: str = "data.block_size"
    layout: str | None = None  # chooses between causal and encoder-decoder, where a method has both

    def unlike(self, name: str, seq2seq: bool) -> str:
        """Say that the model `name` is not of the kind that was asked for."""
        found, wanted = ("a causal", "an encoder-decoder") if seq2seq else ("an encoder-decoder", "a causal")
        instead = f"set {self.layout}={'causal' if seq2seq else 'seq2seq'}" if self.layout else f"give {wanted} language model"
        return f"{self.model}: {name} is {found} language model; {instead}"


def load_pretrained(name: str, dtype: torch.dtype, seq2seq: bool, keys: Keys, weights: bool = True) -> PreTrainedModel:
    """Load a language model from a hub name or a folder; without `weights` only its shapes, on the device at hand.

    Raises ValueError for a model that cannot be loaded, or is not of the kind asked for.
    """
    place, kind = place_of(name), AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place)
        if bool(config.is_encoder_decoder) == seq2seq:
            if weights:
                return kind.from_pretrained(place, dtype=dtype, use_cache=False)
            config.use_cache = False
            return kind.from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{keys.model}: {name} cannot be loaded ({reason}); give a model's folder, or its name on the Hub") from error
    raise ValueError(keys.unlike(name, seq2seq))


def require_fit(model: PreTrainedModel, name: str, vocab_size: int, block_size: int, keys: Keys) -> None:
    """Raise ValueError for a model whose embedding or positions are too few for the data, or whose decoder does not start with padding."""
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size > rows:  # type: ignore[operator]
        raise ValueError(f"{keys.model}: {name} has {rows} embeddings but the tokenizer has {vocab_size} ids; set data.tokenizer={name}")
    positions = getattr(model.config, "max_position_embeddings", block_size)
    if block_size > positions:
        raise ValueError(f"{keys.length}: {name} was made for {positions} positions, not {block_size}; set {keys.length}={positions}")
    if model.config.is_encoder_decoder and model.config.decoder_start_token_id != model.config.pad_token_id:
        raise ValueError(f"{keys.model}: {name} does not start its decoder with padding as T5 does; give a model of the T5 class")


def place_of(name: str) -> str:
    """Return the folder that a name means, or the name itself for the Hub."""
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name
