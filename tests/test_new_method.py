"""A new method is a folder, a datamodule and two YAML files: no existing file is edited, and the contract of methods holds for it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "lightning_modules", "datamodules", "configs")

FILES = {
    "lightning_modules/slope/__init__.py": "",
    "lightning_modules/slope/module.py": '''
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.base import MethodModule, OptimizerFactory


@dataclass(frozen=True)
class SlopeConfig:
    bias: bool = True
    """learn the intercept as well"""


class SlopeModule(MethodModule):
    """A straight line through points."""

    def __init__(self, config: SlopeConfig, optimizer: OptimizerFactory) -> None:
        super().__init__(config, optimizer)
        self.line = torch.nn.Linear(1, 1, bias=config.bias)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return torch.nn.functional.mse_loss(self.line(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), prog_bar=True)
''',
    "datamodules/slope.py": '''
from dataclasses import dataclass

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader


@dataclass(frozen=True)
class SlopeDataConfig:
    points: int = 64
    """points on the line"""
    batch_size: int = 4
    """points in a batch"""


class SlopeData(L.LightningDataModule):
    """Points on y = 3 x + 1."""

    def __init__(self, config: SlopeDataConfig) -> None:
        super().__init__()
        self.batch_size = config.batch_size
        x = torch.linspace(-1, 1, config.points)[:, None]
        self.points = TensorDataset(x, 3 * x + 1)

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(self.points, self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.points, self.batch_size)
''',
    "configs/method/slope.yaml": '''# a straight line through points, the smallest method there is
defaults: {optim: adamw}
module: {_target_: lightning_modules.slope.module.SlopeModule}
data: {_target_: datamodules.slope.SlopeData}
''',
    "configs/experiment/slope_debug.yaml": '''# eight steps down the slope
defaults: {method: slope, trainer: debug, logger: csv}
optim: {lr: 0.1}
''',
}


@pytest.fixture
def grown(tmp_path):
    """A copy of the project with the new method's files added to it, and a function that runs Python there."""
    copy = tmp_path / "project"
    for name in (*PACKAGES, "tests", "slurm"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, copy / name)
    for name, text in FILES.items():
        path = copy / name
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.lstrip())

    def python(*words, cwd=copy, path=copy):
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, text=True, capture_output=True, timeout=300, check=False)

    return copy, python


def test_a_new_method_is_listed_described_and_checked_by_existing(grown, tmp_path):
    _, python = grown
    front = python("-P", "-m", "pipelines", cwd=tmp_path)
    assert "slope      a straight line through points, the smallest method there is" in front.stdout
    assert "slope_debug" in front.stdout
    table = python("-P", "-m", "pipelines", "train", "method=slope", "--help", cwd=tmp_path)
    assert "learn the intercept as well" in table.stdout
    wrong = python("-P", "-m", "pipelines", "train", "method=slope", "module.bais=false", cwd=tmp_path)
    assert wrong.stderr == "error: module.bais: no such key. Did you mean 'bias'?\n"


@pytest.mark.slow
def test_the_contract_of_methods_finds_a_new_method_and_holds_for_it(grown):
    copy, python = grown
    done = python("-m", "pytest", "-q", "-rA", "-k", "slope", str(copy / "tests" / "test_methods.py"), "--rootdir", str(copy))
    assert done.returncode == 0, done.stdout[-3000:]
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED") and "slope" in line]
    assert len(passed) >= 4, done.stdout[-3000:]


def test_the_import_contracts_watch_a_new_method(grown):
    copy, python = grown
    lint = ("-c", "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())")
    kept = python(*lint)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    (copy / "lightning_modules/slope/idea.py").write_text("import lightning\nfrom lightning_modules.fira import module\n")
    broken = python(*lint)
    assert broken.returncode == 1
    assert "lightning_modules.slope.idea -> lightning (l.1)" in broken.stdout
    assert "lightning_modules.slope.idea -> lightning_modules.fira.module (l.2)" in broken.stdout


def test_a_wheel_holds_the_code_and_the_configuration_of_a_new_method(grown, tmp_path):
    copy, python = grown
    built = python("-c", "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    code = {str(p.relative_to(copy)) for name in PACKAGES for p in (copy / name).rglob("*") if p.suffix in (".py", ".yaml", ".csv")}
    shared = {name.partition(".data/data/")[2] for name in held if ".data/" in name}
    assert shared == {f"share/fivefold/slurm/{name}" for name in ("env.sh", "sweep.sbatch", "train.sbatch")}
    assert {name for name in held if ".data/" not in name} == code
    assert set(FILES) <= held
    front = python("-P", "-m", "pipelines", cwd=tmp_path, path=tmp_path / "site")
    assert "slope_debug" in front.stdout
