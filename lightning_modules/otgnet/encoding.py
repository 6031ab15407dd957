"""How long ago an event was, as numbers that a network can use."""

import torch
from torch import Tensor, nn

DECADES = 9.0  # frequencies span 1 ... 1e-9


class TimeEncoding(nn.Module):
    """Phi(dt)_k = cos(w_k dt / scale), w_k = 10^(-9 (k-1) / (dim-1)); the frequencies are fixed.

    `scale` is the unit of time. Times stay integers until here: float32 loses seconds beyond 2^24.
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        exponent = torch.arange(dim, dtype=torch.float64) / max(dim - 1, 1)
        self.register_buffer("frequency", 10.0 ** (-DECADES * exponent) / scale, persistent=False)

    def forward(self, dt: Tensor) -> Tensor:
        """Encode ages dt (...,), clipped at 0, as (..., dim) float32."""
        assert isinstance(self.frequency, Tensor)
        return torch.cos(dt.clamp(min=0).double()[..., None] * self.frequency).float()


def unit_of_time(t: Tensor) -> float:
    """Return the median positive gap between events that follow each other, of ascending times t (E,); 1 where all are equal."""
    gaps = t.diff()
    gaps = gaps[gaps > 0]
    return float(gaps.double().median()) if len(gaps) else 1.0
