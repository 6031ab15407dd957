"""Rotary frequencies that stay in float32 where a network is cast: rounded to bfloat16 they turn tokens into other positions."""

from typing import Any

from lightning_modules.base import MethodModule


class SteadyFrequencies(MethodModule):
    """A method whose networks may have rotary positions."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast as asked, but keep rotary frequencies in float32."""
        kept = {name: b for name, b in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, frequencies in kept.items():
            owner, _, leaf = name.rpartition(".")
            rotary = self.get_submodule(owner)
            setattr(rotary, leaf, frequencies.to(getattr(rotary, leaf).device))
        return self
