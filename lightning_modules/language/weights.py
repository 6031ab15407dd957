"""Weights for a network that was built without memory: drawn or read one matrix at a time, of which a process keeps what it holds.

On the meta device a network has only shapes, and FSDP2 or ZeRO 3 can part it among processes before there is anything to part. Each
process then needs memory for its part and for one whole matrix, never for the model. Every layer is drawn from a generator of its own,
seeded by the layer's name, on the CPU: a seed means the same weights on one process and on many, on a CPU and on a GPU.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from transformers import PreTrainedModel
from transformers.utils import cached_file

from lightning_modules.optim.layout import dtensor_spreads, full_shape
from lightning_modules.optim.projection import seed_of
from lightning_modules.optim.zero import fill, is_cut

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def draw_weights(model: PreTrainedModel, device: torch.device, seed: int) -> None:
    """Give fresh weights to a network without memory, as its own class draws them; the order of random numbers elsewhere is kept."""
    model.to_empty(device=device)
    with torch.random.fork_rng(devices=[]):
        for name, layer in reversed([*model.named_modules()]):  # children first: T5's attention then draws over what its layers drew
            with _whole_parameters(layer):
                torch.manual_seed(seed_of(seed, name))
                model._init_weights(layer)
    model.tie_weights()


@contextmanager
def _whole_parameters(layer: nn.Module) -> Iterator[None]:
    """Put whole parameters on the CPU in place of a layer's own and its children's; at the end take over what this process holds of the
    ones that were drawn.
    """
    held = [(owner, name, p) for owner in (layer, *layer.children()) for name, p in owner.named_parameters(recurse=False)
            if isinstance(p, DTensor) or is_cut(p) or p.device.type != "cpu"]
    # in the type in which one process would draw them, which ZeRO may have rounded already
    wholes = [Parameter(torch.empty(full_shape(p), device="cpu")) for _, _, p in held]
    for (owner, name, _), whole in zip(held, wholes):
        owner._parameters[name] = whole
    untouched = [whole._version for whole in wholes]
    yield
    for (owner, name, p), whole, version in zip(held, wholes, untouched):
        owner._parameters[name] = p
        if whole._version != version:
            _fill(p, whole.detach())


@torch.no_grad()
def _fill(parameter: Tensor, whole: Any) -> None:
    """Copy from `whole`, a tensor or a safetensors slice of the parameter's shape, what this process holds, and read no more of it."""
    if is_cut(parameter):
        fill(parameter, whole)
        return
    held = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if isinstance(held, FakeTensor):  # memory is being estimated, and nothing has values
        return
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole[:])
        return
    (spread,), group = dtensor_spreads([("", parameter)])  # type: ignore[list-item]
    start, stop = spread.intervals[dist.get_rank(group)]
    if start < stop:
        row = spread.count // spread.shape[0]
        held.copy_(whole[start // row : stop // row])


def find_weights(name: str, model: PreTrainedModel) -> dict[str, tuple[Path, str]] | None:
    """Find the file and the key of each parameter of a model on the Hub or in a folder; None if safetensors do not hold them as they are.

    Keys may lack the prefix of the part below the head, as in files of a model that was saved without one.
    """
    wanted = dict(model.named_parameters())  # tied ones once
    found: dict[str, tuple[Path, str]] = {}
    for path in _safetensors(name):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                own = key if key in wanted else f"{model.base_model_prefix}.{key}"
                if own in wanted and tuple(file.get_slice(key).get_shape()) == tuple(wanted[own].shape):
                    found[own] = (path, key)
    return found if found.keys() == wanted.keys() else None


def _safetensors(name: str) -> list[Path]:
    """Locate the safetensors files of a model, downloaded if need be; none if it has none."""
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    single = cached_file(name, SINGLE, **optional)
    if single is not None:
        return [Path(single)]
    index = cached_file(name, INDEX, **optional)
    if index is None:
        return []
    names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    return [Path(path) for file in names if (path := cached_file(name, file)) is not None]


def read_weights(model: PreTrainedModel, device: torch.device, found: dict[str, tuple[Path, str]]) -> None:
    """Give a network without memory the weights that `find_weights` found; a process reads only the rows that it holds."""
    model.to_empty(device=device)
    model.tie_weights()
    parameters = dict(model.named_parameters())
    for path in sorted({path for path, _ in found.values()}):
        with safe_open(path, "pt") as file:
            for own, (place, key) in found.items():
                if place == path:
                    _fill(parameters[own], file.get_slice(key))
    for layer in model.modules():
        if layer._non_persistent_buffers_set:  # such as rotary frequencies, which are in no file
            model._init_weights(layer)
