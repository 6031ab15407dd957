"""fivefold doctor: is this machine ready, and does it run the code that you think it runs?"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pipelines.config import ConfigError
from pipelines.schema import RunSection

OURS = ("pipelines", "lightning_modules", "datamodules", "configs")
HEAVY = ("torch", "lightning", "transformers", "torch_geometric", "omegaconf", "wandb", "datasets", "torchdata")  # import names
INSTALL = "pip install -c constraints.txt -e ."
Finding = tuple[bool, str, str]  # fine?, subject, what was found


def run(argv: list[str]) -> int:
    """Print one line a check; exit status 1 when one failed."""
    if argv and argv != ["--help"]:
        raise ConfigError(f"{argv[0]}: doctor takes no words")
    if argv:
        print("fivefold doctor\n\nChecks Python, packages, devices, W&B and folders, and says what to mend.")
        return 0
    findings = (finding for check in CHECKS for finding in _guarded(check))
    worst = 0
    for fine, subject, found in findings:
        print(f"{'ok  ' if fine else 'FAIL'}  {subject}: {' '.join(found.split())}", flush=True)
        worst |= not fine
    return int(worst)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Pass the findings of a check on; a check that breaks is a finding as well."""
    try:
        yield from check()
    except Exception as error:
        yield False, check.__name__.strip("_"), f"{type(error).__name__}: {error}"


def _python() -> Iterator[Finding]:
    fine = (3, 11) <= sys.version_info < (3, 14)
    yield fine, "python", f"{platform.python_version()} at {sys.executable}" + ("" if fine else "; use 3.11, 3.12 or 3.13")


def _shadows() -> Iterator[Finding]:
    """Compare where each of our package names leads with the folder of this very file."""
    here = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = find_spec(name)
        found = [str(Path(place).resolve().parent) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        fine = found == [str(here)]
        advice = "" if fine else f"; it hides ours in {here}: remove it from PYTHONPATH or rename it, and start Python with -P"
        yield fine, f"package {name}", f"from {', '.join(found) or 'nowhere'}{advice}"


def _requirements() -> Iterator[Finding]:
    """Compare installed versions with those that our own package asks for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires("fivefold") or ()]
    except metadata.PackageNotFoundError:
        yield True, "requirements", f"fivefold runs from its source and is not installed; {INSTALL} installs what it needs"
        return
    bad: list[str] = []
    needed = [r for r in asked if not r.marker or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
            bad += [] if requirement.specifier.contains(version, prereleases=True) else [f"{requirement} but there is {version}"]
        except metadata.PackageNotFoundError:
            bad.append(f"{requirement} is missing")
    yield not bad, "requirements", f"{'; '.join(bad)}; {INSTALL}" if bad else f"all {len(needed)} packages are there, new enough"


def _imports() -> Iterator[Finding]:
    """Import what may be installed and still not work."""
    for name in HEAVY:
        try:
            module = importlib.import_module(name)
            yield True, name, str(module.__version__)
        except Exception as error:
            yield False, name, f"does not import ({type(error).__name__}: {error}); {INSTALL}"


def _devices() -> Iterator[Finding]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        yield True, "devices", f"{len(gpus)} GPUs ({', '.join(gpus)}), CUDA {torch.version.cuda}"
    elif Path("/dev/nvidia0").exists():
        yield False, "devices", f"an NVIDIA GPU that torch {torch.__version__} cannot use; install its CUDA build or mend the driver"
    else:
        yield True, "devices", f"no GPU; CPU with {torch.get_num_threads()} torch threads"


def _processes() -> Iterator[Finding]:
    import torch.distributed as dist

    backends = [name for name in ("gloo", "nccl", "mpi") if dist.is_available() and getattr(dist, f"is_{name}_available")()]
    yield bool(backends), "process groups", ", ".join(backends) or "none: this torch cannot run several processes; install another build"


def _tracking() -> Iterator[Finding]:
    from pipelines.tracking import wandb_mode

    mode = wandb_mode("auto")
    kept = f"runs are kept {mode}; wandb login to send them, wandb sync for those kept"
    yield True, "W&B", "logged in: runs go online" if mode == "online" else kept


def _folders() -> Iterator[Finding]:
    """Ask whether the folders that runs write to by default have room and may be written."""
    for subject, place, key in (("runs", RunSection().root, "run.root"), ("cache", "~/.cache/fivefold", "data.cache")):
        folder = Path(place).expanduser()
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e9
        bad = "" if os.access(there, os.W_OK) and there.is_dir() else f"; {there} is no folder that you may write to, set {key}"
        bad = bad or ("" if free > 1 else f"; make room or set {key}")
        yield not bad, f"{subject} folder", f"{folder}, {free:,.0f} GB free{bad}"


CHECKS = (_python, _shadows, _requirements, _imports, _devices, _processes, _tracking, _folders)
