"""fivefold doctor: is this machine ready, and does it run the code that you think it runs?"""

import importlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pipelines.config import ConfigError

OURS = ("pipelines", "lightning_modules", "datamodules", "configs")
Finding = tuple[bool, str, str]  # fine?, subject, what was found


def run(argv: list[str]) -> int:
    """Print one line a check; exit status 1 when one failed."""
    if argv and argv != ["--help"]:
        raise ConfigError(f"{argv[0]}: doctor takes no words")
    if argv:
        print("fivefold doctor\n\nChecks Python, packages, devices, W&B and folders, and says what to mend.")
        return 0
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _shadows, _packages, _devices, _processes, _tracking, _folders)
    worst = 0
    for check in checks:
        for fine, subject, found in check():
            print(f"{'ok  ' if fine else 'FAIL'}  {subject}: {found}", flush=True)
            worst |= not fine
    return int(worst)


def _python() -> Iterator[Finding]:
    version = sys.version_info
    yield (3, 11) <= version < (3, 14), "python", f"{platform.python_version()} at {sys.executable}" + (
        "" if (3, 11) <= version < (3, 14) else "; use 3.11, 3.12 or 3.13")


def _shadows() -> Iterator[Finding]:
    here = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        yield found == here, f"package {name}", f"from {found}" + ("" if found == here else f"; it shadows ours in {here}: remove it, or run with python -P")


def _packages() -> Iterator[Finding]:
    wanted = {"torch": "torch", "lightning": "lightning", "transformers": "transformers", "torch-geometric": "torch_geometric",
              "omegaconf": "omegaconf", "wandb": "wandb", "datasets": "datasets", "torchdata": "torchdata"}
    for name, module in wanted.items():
        try:
            importlib.import_module(module)
            yield True, name, metadata.version(name)
        except Exception as error:
            yield False, name, f"does not import ({type(error).__name__}: {error}); install it with pip install -c constraints.txt -e ."


def _devices() -> Iterator[Finding]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield True, "devices", f"{len(gpus)} GPUs {gpus}, CUDA {torch.version.cuda}" if gpus else f"no GPU; CPU with {torch.get_num_threads()} torch threads"


def _processes() -> Iterator[Finding]:
    import torch.distributed as dist

    backends = [name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available()), ("mpi", dist.is_mpi_available())) if there]
    yield bool(backends), "process groups", ", ".join(backends) or "none: this torch cannot run several processes"


def _tracking() -> Iterator[Finding]:
    from pipelines.tracking import wandb_mode

    mode = wandb_mode("auto")
    yield True, "W&B", "logged in: runs go online" if mode == "online" else f"runs are kept {mode}; wandb login to send them, wandb sync for those kept"


def _folders() -> Iterator[Finding]:
    for subject, place in (("runs", "~/fivefold-runs"), ("cache", "~/.cache/fivefold")):
        folder = Path(place).expanduser()
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e9
        yield free > 1, f"{subject} folder", f"{folder}, {free:,.0f} GB free" + ("" if free > 1 else "; make room or set run.root")
