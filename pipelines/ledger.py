"""A ledger of memory: which bytes are alive while a program runs on tensors without memory, what they are for, and their peak."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "activations, temporaries"
CATEGORIES = ("parameters", "gradients", "optimizer state", "communication", REST)
COLLECTIVES = ("c10d", "_c10d_functional", "fsdp")  # namespaces of operators that move data between processes
GROWTH = 1.001  # of the peak, from which on its parts are counted anew


class Ledger(TorchDispatchMode):
    """Count every storage from its first sight to its end; use it inside a FakeTensorMode, where values are not known.

    What is not marked counts as activations and temporaries. `gradients` returns those that exist when it is called. Where the program
    asks for a value, a flag is True and a number is 1: a Fira step then looks for a new basis.
    """

    def __init__(self, gradients: Callable[[], Iterable[Tensor]] = tuple) -> None:
        super().__init__()
        self.gradients = gradients
        self.phase = "building"
        self.peaks: dict[str, dict[str, int]] = {}  # phase -> category -> bytes when the most was alive
        self._sizes: dict[int, int] = {}  # storage -> bytes
        self._categories: dict[int, str] = {}
        self._now = 0
        self._counted: dict[str, int] = {}  # phase -> total when its parts were counted

    def __enter__(self) -> "Ledger":
        self._resize = torch.UntypedStorage.resize_
        ledger, resize = self, self._resize

        def noted(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            ledger._set(storage._cdata, size)
            return result

        # FSDP2 frees memory so, past all operators
        torch.UntypedStorage.resize_ = noted  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*failure)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            return True if args[0].dtype == torch.bool else 1
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if func.namespace in COLLECTIVES:
            moved = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.mark("communication", moved, unless_marked=True)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return  # has no memory on a real machine, either
        storage = _storage(tensor)
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._forget, key)
            self._set(key, storage.nbytes())

    def _set(self, key: int, size: int) -> None:
        if key in self._sizes:
            self._now += size - self._sizes[key]
            self._sizes[key] = size
            if self._now > GROWTH * self._counted.get(self.phase, 0):
                self._counted[self.phase] = self._now
                self.peaks[self.phase] = self.count()

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
        self._categories.pop(key, None)

    def mark(self, category: str, tensors: Iterable[Tensor], unless_marked: bool = False) -> None:
        """Say what tensors are for."""
        for tensor in tensors:
            self._see(tensor)
            key = _storage(tensor)._cdata
            if key in self._sizes and not (unless_marked and key in self._categories):
                self._categories[key] = category
        if self._counted.get(self.phase) == self._now:  # the peak is counted already, under what was known then
            self.peaks[self.phase] = self.count()

    def count(self) -> dict[str, int]:
        """Return the bytes alive now by category."""
        own = {_storage(gradient)._cdata for gradient in self.gradients()}
        found = dict.fromkeys(CATEGORIES, 0)
        for key, size in self._sizes.items():
            found["gradients" if key in own else self._categories.get(key, REST)] += size
        return found


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    """Return where the numbers lie; a DTensor is a wrapper that seems to be as large as the whole."""
    return (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
