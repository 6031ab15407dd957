"""fivefold doctor: is this machine ready, and does it run the code that you think it runs?"""

import importlib
import os
import platform
import shutil
import subprocess
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
NETWORKS = Path("/sys/class/net")
Finding = tuple[bool, str, str]  # fine?, subject, what was found


def run(argv: list[str]) -> int:
    """Print one line a check; exit status 1 when one failed."""
    if argv == ["--ranks"]:
        from pipelines.ranks import check_ranks

        return check_ranks()
    if argv and argv != ["--help"]:
        raise ConfigError(f"{argv[0]}: doctor takes no words but --ranks")
    if argv:
        print("fivefold doctor [--ranks]\n\nChecks Python, packages, devices, the network between them, Slurm, W&B and folders, and says "
              "what to mend.\n  --ranks  started by srun or torchrun: do the processes of a job meet, add up right, and how fast?")
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


def _interconnect() -> Iterator[Finding]:
    """Tell by what GPUs of this machine reach each other, and by what this machine reaches others."""
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        apart = [f"{a}-{b}" for a in range(count) for b in range(a + 1, count) if not torch.cuda.can_device_access_peer(a, b)]
        slow = f"; pairs without direct access: {', '.join(apart)}, which go through the host" if apart else ""
        pairs = count * (count - 1) // 2
        yield True, "GPU to GPU", f"{pairs - len(apart)} of {pairs} pairs reach each other directly{slow}"
    adapters = fast_adapters()
    if count or adapters:
        version = ".".join(map(str, torch.cuda.nccl.version())) if count and torch.distributed.is_nccl_available() else "no NCCL"
        yield True, "NCCL", f"{version}; {', '.join(adapters) or 'no InfiniBand or RoCE adapter, so nodes talk by TCP'}"
    chosen = os.environ.get("NCCL_SOCKET_IFNAME") or os.environ.get("GLOO_SOCKET_IFNAME")
    there = [path.name for path in NETWORKS.iterdir()] if NETWORKS.is_dir() else []
    if chosen and there and not any(name.startswith(chosen.lstrip("^=")) for name in there):
        yield False, "network", f"NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names {chosen}, but there are {', '.join(sorted(there))}"


def fast_adapters(place: Path = Path("/sys/class/infiniband")) -> list[str]:
    """List the InfiniBand and RoCE adapters with the state and rate of their ports, as Linux shows them."""
    def read(file: Path) -> str:
        return file.read_text().strip().rpartition(": ")[2] if file.is_file() else "?"

    return [f"{port.parent.parent.name} {read(port / 'state').lower()} {read(port / 'rate')}" for port in sorted(place.glob("*/ports/*"))]


def _slurm() -> Iterator[Finding]:
    """Ask the cluster that this machine belongs to, if any, for its partitions."""
    if shutil.which("sinfo") is None:
        yield True, "Slurm", "none on this machine; fivefold submit works on a login node"
        return
    done = subprocess.run(["sinfo", "--noheader", "--format=%R %D %l"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        yield True, "Slurm", f"installed, but no cluster answers ({reason}); fivefold submit works on a login node"
        return
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    nodes: dict[str, int] = {}
    for name, count, _ in rows:
        nodes[name] = nodes.get(name, 0) + int(count)
    limits = {name: limit for name, _, limit in rows}
    yield bool(rows), "Slurm", "; ".join(f"{name}: {count} nodes, limit {limits[name]}" for name, count in nodes.items()) or "no partitions"


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


CHECKS = (_python, _shadows, _requirements, _imports, _devices, _processes, _interconnect, _slurm, _tracking, _folders)
