"""The omni models that can be examined, by the names that `module.adapter` has for them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_modules.av_odyssey.kinds.kind import OmniKind

OMNI = ("qwen2_5_omni", "qwen3_omni", "gemma4", "gemma3n", "phi4_multimodal")


def kind_of(name: str) -> "OmniKind":
    """Return the kind of that name; its imports take seconds, and only an omni model needs them."""
    if name.startswith("qwen"):
        from lightning_modules.av_odyssey.kinds.qwen import Qwen3, Qwen25

        return Qwen25() if name == "qwen2_5_omni" else Qwen3()
    if name.startswith("gemma"):
        from lightning_modules.av_odyssey.kinds.gemma import Gemma3n, Gemma4

        return Gemma4() if name == "gemma4" else Gemma3n()
    from lightning_modules.av_odyssey.kinds.phi import Phi4

    assert name == "phi4_multimodal", name
    return Phi4()
