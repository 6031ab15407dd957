"""What tells one omni model from another: how it is made or loaded, what stands in its prompts, and which of its parts learn."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Tokenizer

from lightning_modules.av_odyssey.kinds.prompts import full_precision

SPREAD = 0.2  # of random weights; with the usual 0.02 a model this small hardly hears what it is shown
MISSING = "module.adapter: {} sees with {}; pip install -c constraints.txt -e '.[omni]' installs it, or take qwen2_5_omni or gemma4"


class OmniKind(ABC):
    """A family of omni models; those below it say what is theirs.

    A prompt is `opening`, then text with a placeholder for each medium, then `closing`; a reply ends with `end`. Placeholders are named
    by attributes of the processor. `projector` is the layer that turns what is heard into words' embeddings, `blocks` are the classes of
    layers that are gathered one at a time where processes share them, `needs` the packages beside transformers, `learns` tells whether
    it can be trained here, `gathers` whether weights are read by their own layers alone, as ZeRO 3 needs it, `batches` whether a sound is
    heard the same beside others. `types` are what a folder's settings may call the model.
    """

    title: ClassVar[str]
    opening: ClassVar[str]
    closing: ClassVar[str]
    end: ClassVar[str]
    sound: ClassVar[Sequence[str]]
    picture: ClassVar[Sequence[str]]
    projector: ClassVar[str]
    blocks: ClassVar[Sequence[str]]
    needs: ClassVar[Sequence[str]] = ()
    learns: ClassVar[bool] = True
    gathers: ClassVar[bool] = True
    batches: ClassVar[bool] = True
    types: ClassVar[Sequence[str]]

    @abstractmethod
    def made(self) -> tuple[Any, Any]:
        """Make a tiny model with random weights, by the generator of the process, and its processor."""

    @abstractmethod
    def loaded(self, name: str, dtype: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """Load model and processor from a folder or the Hub; return with them what transformers says of the loading.

        What is not there, or does not fit, raises whatever transformers raises.
        """

    @abstractmethod
    def window(self, processor: Any) -> float:
        """Return how many seconds of a sound are heard."""

    def extractor(self, processor: Any) -> Any:
        """Return what makes features of sounds."""
        return processor.feature_extractor

    def given(self, processor: Any, text: str, pictures: list[np.ndarray], sounds: list[np.ndarray]) -> dict[str, Tensor]:
        """Turn one prompt into the model's tensors by name: tokens (1, T), and what stands for its media, a row or several each."""
        return dict(processor(text=[text], images=pictures or None, audio=sounds or None, return_tensors="pt", **self.calls(processor)))

    def calls(self, processor: Any) -> dict[str, Any]:
        """Return how a processor is called: the prompt has its special tokens already, and sounds have its rate."""
        return {"padding": True, "text_kwargs": {"add_special_tokens": False},
                "audio_kwargs": {"sampling_rate": self.extractor(processor).sampling_rate}}

    def attune(self, model: Any, given: Mapping[str, Tensor]) -> None:  # noqa: B027  (most models need nothing)
        """Prepare a model for what it is about to be given, where its weights depend on that."""

    def require(self) -> None:
        """Raise ValueError where a package is missing."""
        if missing := [package for package in self.needs if find_spec(package) is None]:
            raise ValueError(MISSING.format(self.title, " and ".join(missing)))

    def tiny(self, seed: int = 0, dtype: torch.dtype | None = None) -> tuple[Any, Any, str]:
        """Make model, processor and the name of the weights, a digest of them before they are cast to `dtype`; the same for a seed.

        The generator of the process is left as it was.
        """
        self.require()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), full_precision():
            torch.manual_seed(seed)
            model, processor = self.made()
        content = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            content.update(name.encode() + value.contiguous().numpy().tobytes())
        return model.eval() if dtype is None else model.eval().to(dtype), processor, f"tiny {content.hexdigest()}"

    def pretrained(self, name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any, str]:
        """Load model, processor and the name of the weights from a folder or the Hub, of `dtype` or of that in which they were saved.

        Raises ValueError if what is there is another model, or none.
        """
        self.require()
        try:
            called = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
            if called not in self.types:
                raise ValueError(f"its config.json has model_type {called}, not {' or '.join(self.types)}")
            model, processor, told = self.loaded(name, dtype or "auto")
            if told["missing_keys"] or told["mismatched_keys"]:
                raise ValueError(f"no weights for {min([*told['missing_keys'], *(key for key, *_ in told['mismatched_keys'])])}")
        except (OSError, AttributeError, KeyError, TypeError, ValueError, StrictDataclassError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"module.pretrained: {name}: holds no {self.title} with its processor ({reason})") from error
        folder = Path(name).expanduser()
        return model.eval(), processor, digest_of_folder(folder) if folder.is_dir() else f"{name} {model.config._commit_hash}"


def weights_of(model: Any, name: str, dtype: Any) -> tuple[Any, Mapping[str, Any]]:
    """Load a class of transformers' models, and return with it what that says of the loading, such as its `missing_keys`."""
    return model.from_pretrained(name, dtype=dtype, output_loading_info=True)


def tiny_tokenizer(special: Sequence[str], named: Mapping[str, str], end: str, behind: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Make a tokenizer of one token a byte, after `special` ones, the first of which pads, and before those of `behind`."""
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(ByteLevel.alphabet()), *behind])}
    others = {f"other_{number}_token": token for number, token in enumerate(special) if token not in (end, *named.values())}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token=end, pad_token=special[0], unk_token=special[0],
                          extra_special_tokens={**named, **others})


def digest_of_folder(folder: Path) -> str:
    """Hash all that the files of a folder hold, and their names: weights that learnt anywhere are other weights."""
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content.update(f"{path.relative_to(folder)}\n".encode() + hashlib.file_digest(file, hashlib.blake2b).digest())
    return content.hexdigest()
