"""DeepSpeed ZeRO under Lightning with our optimizers and our checkpoints, on GPUs and, for tests and CPU clusters, on CPUs.

Training is Lightning's DeepSpeedStrategy. Added are: the layout is read from DeepSpeed and given to the optimizer; a checkpoint is the
one file of whole float32 weights and whole optimizer state that all strategies share; gradients that are not finite raise on all
processes where the optimizer says so; and what Lightning refuses on a CPU.
"""

import argparse
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_modules.optim.adamw import AdamW
from lightning_modules.optim.layout import spread_later
from lightning_modules.optim.nonfinite import not_finite
from lightning_modules.optim.zero import cut_parameters, cutting, gradients_before_step, overwrite, take_unrounded, zero_layout
from pipelines.loss_scale import SCALER, loss_scale, set_loss_scale

TYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}


class Zero(DeepSpeedStrategy):
    """ZeRO of stage 1, 2 or 3; gradients are clipped by their norm at `gradient_clip_val` (None: not at all).

    Under 16-bit precision DeepSpeed computes with 16-bit weights and keeps float32 masters; gradients are summed in float32 here.
    """

    def __init__(self, stage: int, gradient_clip_val: float | None = None, accelerator: str = "auto", **others: Any) -> None:
        if accelerator == "cpu" or not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is first imported
        super().__init__(stage=stage, logging_batch_size_per_gpu=1, **others)  # only for DeepSpeed's own log
        assert self.config is not None
        self.config["gradient_clipping"] = gradient_clip_val or 0.0  # DeepSpeed's own default is 1

    # What Lightning refuses on a CPU

    def setup_environment(self) -> None:
        """Start the processes' communication; on a CPU without Lightning's check for GPUs."""
        if not isinstance(self.accelerator, CPUAccelerator):
            return super().setup_environment()
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None  # would compile an extension for what gloo does as well
        os.environ["LOCAL_SIZE"] = str(self.num_processes)  # how many devices DeepSpeed believes to see
        return DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Join the process group; CPUs have no indices that could be checked."""
        if not isinstance(self.accelerator, CPUAccelerator):
            return super().setup_distributed()
        reset_seed()
        self.set_world_ranks()
        return self._init_deepspeed_distributed()

    def _start_engine(self, model: nn.Module, config: Any, **parts: Any) -> tuple[Any, Any]:
        """Call deepspeed.initialize as Lightning does, with a device number also where devices have none."""
        import deepspeed

        index = self.root_device.index
        arguments = argparse.Namespace(device_rank=self.local_rank if index is None else index)
        engine, optimizer, _, _ = deepspeed.initialize(args=arguments, config=config, model=model, dist_init_required=False, **parts)
        return engine, optimizer

    # Building

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let a model be built as on one process, with the same random numbers; stage 3 then cuts it up, one parameter at a time.

        A method that builds its network without memory has it cut before that, in `MethodModule.shard`.
        """
        self._init_config_if_needed()
        if not self.zero_stage_3:
            yield
            return
        with cutting(self._cut):
            yield
        assert self.lightning_module is not None
        self._cut(self.lightning_module)
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            tensor.data = tensor.data.to(self.root_device)

    @property
    def computed_dtype(self) -> torch.dtype:
        """The type that DeepSpeed computes in."""
        return TYPES[self.precision_plugin.precision.split("-")[0]]

    def _cut(self, network: nn.Module) -> None:
        """Leave to each process its chunks of all parameters, on its device and in the type that they are computed in."""
        import deepspeed

        init = deepspeed.zero.Init(config_dict_or_path=self.config)

        def to_chunk(parameter: Parameter) -> None:
            init._convert_to_deepspeed_param(parameter)
            parameter.partition()  # type: ignore[attr-defined]

        cut_parameters(network, to_chunk, self.computed_dtype, self.root_device)

    def _format_config(self) -> None:
        super()._format_config()
        assert self.config is not None
        if "bf16" in self.config:
            self.config.setdefault("data_types", {"grad_accum_dtype": "fp32"})

    def _init_optimizers(self) -> tuple[Optimizer, Any]:
        with spread_later():
            return super()._init_optimizers()

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None) -> tuple[Any, Any]:
        """Start DeepSpeed and tell the optimizer how DeepSpeed has spread the parameters.

        Raises ValueError for optimizers that cannot be told.
        """
        if not isinstance(optimizer, AdamW):
            raise ValueError(f"strategy: deepspeed works with optim=adamw, fira or galore, not with {type(optimizer).__name__}; "
                             "choose one of them or strategy=ddp")
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        masters = take_unrounded(trained) if self.zero_stage_3 else {n: p.data for n, p in trained if p.dtype != self.computed_dtype}
        engine, zero = self._start_engine(model, self.config, optimizer=optimizer, lr_scheduler=lr_scheduler,
                                          model_parameters=[p for _, p in trained])
        layout = zero_layout(zero, trained)
        optimizer.distribute(layout.spreads, layout.group, layout.held, layout.stay)
        for name, weights in masters.items():  # DeepSpeed has made its own from weights that were rounded
            optimizer.held[name].weight.copy_(weights if self.zero_stage_3 else optimizer.part(name, weights))
        self._names = {id(p): name for name, p in trained}
        return engine, zero

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Start DeepSpeed without an optimizer, as Lightning does."""
        from lightning.pytorch.strategies.deepspeed import remove_module_hooks

        assert self.config is not None
        kept = ("fp16", "bf16", *(("zero_allow_untested_optimizer", "zero_optimization") if self.zero_stage_3 else ()))
        config = {"train_micro_batch_size_per_gpu": 1, **{key: self.config[key] for key in kept if key in self.config}}
        remove_module_hooks(model)
        take_unrounded(model.named_parameters())
        self.model, _ = self._start_engine(model, config, optimizer=None, lr_scheduler=None, model_parameters=[])

    # Training

    @property
    def client_optimizer(self) -> AdamW | None:
        """Our optimizer inside DeepSpeed's; None where nothing is trained."""
        return self.optimizers[0].optimizer if self.optimizers else None  # type: ignore[attr-defined]

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Let Lightning say when to step: at the end of an epoch it does so earlier than DeepSpeed's own count of batches."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients of accumulated batches be summed; `backward` tells DeepSpeed about them."""
        yield

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Go backward; DeepSpeed has to know before whether a step follows.

        Lightning has divided the loss by the number of accumulated batches, so DeepSpeed must not do it once more.
        """
        assert self.lightning_module is not None
        accumulates = self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(not accumulates)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Make a step. DeepSpeed leaves out steps whose gradients are not finite, on all processes; `nonfinite=raise` ends the run.

        Under float16 such steps belong to the search for the loss scale and are left out in any case.
        """
        zero: Any = self.optimizers[0]
        own = self.client_optimizer
        raises = own is not None and own.config.nonfinite == "raise" and not getattr(zero, "dynamic_loss_scale", False)
        bad: dict[str, Tensor] = {}

        def watched() -> Any:
            result = closure()
            if raises:
                held = list(gradients_before_step(zero, self._names))
                bad.update(zip((name for name, _ in held), not_finite([gradient for _, gradient in held]), strict=True) if held else ())
            return result

        result = super().optimizer_step(optimizer, watched, model, **kwargs)
        if raises and zero.overflow:
            self._name_the_bad(bad)
        return result

    def _name_the_bad(self, bad: Mapping[str, Tensor]) -> None:
        """Raise FloatingPointError on all processes, with the parameters whose gradients are not finite on any."""
        own = self.client_optimizer
        assert own is not None
        assert own.exchange is not None
        names = list(own.held)
        flags = torch.tensor([bool(bad.get(name, False)) for name in names], dtype=torch.float32, device=own.exchange.like.device)
        own.finite.skip(names, own.exchange.agreed(flags).bool(), urgent=True)
        raise FloatingPointError("the norm of the gradient is not finite; lower optim.lr or the loss, "
                                 "or leave such steps out with optim.nonfinite=skip")

    # Checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand the saved state to `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the whole weights on the first process, trained ones from their float32 masters; elsewhere the result is empty."""
        module, own = self.lightning_module, self.client_optimizer
        assert module is not None
        names = {id(p): name for name, p in module.named_parameters()} if own is not None else {}
        found: dict[int, Any] = {}  # tied weights are one tensor in the file, too
        state = module.state_dict(keep_vars=True)
        for tensor in state.values():
            if id(tensor) not in found:
                name = names.get(id(tensor))
                trained = own is not None and name in own.entries
                whole = own.gathered(name, own.held[name].weight) if trained else _whole(tensor)  # type: ignore[union-attr, index, arg-type]
                found[id(tensor)] = whole if self.is_global_zero else None
        return {key: found[id(tensor)] for key, tensor in state.items()} if self.is_global_zero else {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of whole weights, in the type that DeepSpeed computes with and in float32 for the masters."""
        module, own, saved = self.lightning_module, self.client_optimizer, checkpoint["state_dict"]
        assert module is not None
        state = module.state_dict(keep_vars=True)
        if strict and (different := sorted(state.keys() ^ saved.keys())):
            raise RuntimeError(f"the saved weights are of another model: {different[0]} is in only one of them")
        names = {id(p): name for name, p in module.named_parameters()}
        with torch.no_grad():
            for key in state.keys() & saved.keys():
                overwrite(state[key], saved[key])
                name = names.get(id(state[key]))
                if own is not None and name in own.entries:
                    own.held[name].weight.copy_(own.part(name, saved[key]))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the whole state of our optimizer on the first process."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.optimizer.state_dict()  # type: ignore[attr-defined]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the whole state."""
        assert self.client_optimizer is not None
        self.client_optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        set_loss_scale(self.optimizers[0], checkpoint.get(SCALER))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file, from the first process."""
        if self.optimizers and (scale := loss_scale(self.optimizers[0])):
            checkpoint[SCALER] = scale
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def _whole(tensor: Any) -> Any:
    """Copy a parameter or buffer to the host, gathered where stage 3 has cut it, floating-point parameters as float32."""
    if not isinstance(tensor, Tensor):
        return tensor
    if hasattr(tensor, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().float().cpu().clone()
    copy = tensor.detach().cpu().clone()
    return copy.float() if isinstance(tensor, nn.Parameter) and copy.is_floating_point() else copy
