"""fivefold doctor finds what is wrong with a machine and says what to mend."""

import builtins
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata

import pytest

from pipelines import doctor
from tests.pipelines.fake_slurm import FakeSlurm


def findings(check):
    return list(doctor._guarded(check))


@pytest.mark.slow
def test_this_machine_is_ready(fivefold):
    done = fivefold("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    asked = ("python", "package configs", "requirements", "torch", "devices", "process groups", "Slurm", "W&B", "runs folder",
             "cache folder")
    assert [sum(line.startswith(f"ok    {subject}: ") for line in lines) for subject in asked] == [1] * len(asked)


@pytest.mark.parametrize("name", ["configs", "datamodules", "lightning_modules"])
@pytest.mark.parametrize("regular", [True, False], ids=["with __init__.py", "a mere folder"])
def test_a_foreign_package_of_our_name_is_reported_with_its_place(name, regular, tmp_path):
    (tmp_path / name).mkdir()
    if regular:
        (tmp_path / name / "__init__.py").touch()
    code = "from pipelines import doctor; doctor.CHECKS = (doctor._shadows,); raise SystemExit(doctor.run([]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    bad = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(bad) == 1
    assert bad[0].startswith(f"FAIL  package {name}: from {tmp_path}; it hides ours in ")
    assert "remove it from PYTHONPATH or rename it" in bad[0]


def test_a_missing_and_an_old_requirement_are_reported_with_the_command_that_mends_them(monkeypatch):
    asked = ["torch>=2.11", "rich>=15", "lightning>=2.6", "pytest>=9; extra == 'dev'"]
    versions = {"torch": "2.13.0+cpu", "rich": "13.1"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "version", version)
    assert findings(doctor._requirements) == [
        (False, "requirements", f"rich>=15 but there is 13.1; lightning>=2.6 is missing; {doctor.INSTALL}")]
    versions.update(rich="15.0", lightning="2.6.6")
    assert findings(doctor._requirements) == [(True, "requirements", "all 3 packages are there, new enough")]


def test_a_package_that_does_not_import_is_reported_and_the_others_are_still_asked(monkeypatch):
    real = importlib.import_module

    def broken(name):
        if name == "torch":
            raise OSError("libcudart.so: cannot open")
        return real("rich" if name != "omegaconf" else name)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(real("rich"), "__version__", "1", raising=False)
    found = {subject: (fine, said) for fine, subject, said in findings(doctor._imports)}
    assert list(found) == list(doctor.HEAVY)
    assert found["torch"] == (False, f"does not import (OSError: libcudart.so: cannot open); {doctor.INSTALL}")
    assert found["omegaconf"] == (True, metadata.version("omegaconf"))


def test_a_check_that_breaks_is_a_finding_and_the_rest_go_on(monkeypatch, capsys):
    def without_torch(name, *rest, **more):
        if name.startswith("torch"):
            raise ModuleNotFoundError("No module named 'torch'")
        return real(name, *rest, **more)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_torch)
    monkeypatch.setattr(doctor, "CHECKS", (doctor._devices, doctor._python))
    assert doctor.run([]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "FAIL  devices: ModuleNotFoundError: No module named 'torch'"
    assert second.startswith("ok    python: ")


def test_another_python_is_reported_with_those_that_work(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    ((fine, _, said),) = findings(doctor._python)
    assert not fine
    assert said.endswith("; use 3.11, 3.12 or 3.13")


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_reported_with_the_key_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [fine for fine, *_ in findings(doctor._folders)] == [True, True]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 10, 10**8))
    assert [re.search(r"; make room or set (.*)", said)[1] for _, _, said in findings(doctor._folders)] == ["run.root", "data.cache"]
    (tmp_path / ".cache").write_text("a file where a folder should be")
    said = [said for fine, _, said in findings(doctor._folders) if not fine]
    assert said[1].endswith(f"; {tmp_path / '.cache'} is no folder that you may write to, set data.cache")


SINFO = "printf 'gpu 3 2-00:00:00\\ngpu 1 2-00:00:00\\ndebug 2 30:00\\n'"
UNREACHABLE = "echo 'sinfo: error: x' >&2; echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"


@pytest.mark.parametrize(("answer", "said"), [
    (SINFO, "gpu: 4 nodes, limit 2-00:00:00; debug: 2 nodes, limit 30:00"),
    (UNREACHABLE, "installed, but no cluster answers (slurm_load_partitions: Unable to contact slurm controller); "
                  "fivefold submit works on a login node"),
])
def test_a_cluster_is_asked_for_its_partitions(answer, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", FakeSlurm(tmp_path / "slurm", sinfo=answer).path)
    assert findings(doctor._slurm) == [(True, "Slurm", said)]
    monkeypatch.setenv("PATH", "")
    assert findings(doctor._slurm) == [(True, "Slurm", "none on this machine; fivefold submit works on a login node")]


def test_fast_adapters_are_read_as_linux_shows_them(tmp_path):
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("200 Gb/sec (4X HDR)\n")
    (tmp_path / "mlx5_1" / "ports" / "1").mkdir(parents=True)
    assert doctor.fast_adapters(tmp_path) == ["mlx5_0 active 200 Gb/sec (4X HDR)", "mlx5_1 ? ?"]
    assert doctor.fast_adapters(tmp_path / "none") == []


def test_a_network_that_is_chosen_and_not_there_is_reported_with_those_that_are(tmp_path, monkeypatch):
    for name in ("eth0", "lo"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(doctor, "NETWORKS", tmp_path)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert findings(doctor._interconnect)[-1] == (
        False, "network", "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names ib0, but there are eth0, lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth")
    assert all(fine for fine, *_ in findings(doctor._interconnect))


def test_gpus_that_do_not_reach_each_other_are_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.can_device_access_peer", lambda a, b: (a, b) != (0, 2))
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    first = findings(doctor._interconnect)[0]
    assert first[:2] == (True, "GPU to GPU")
    assert first[2] == "2 of 3 pairs reach each other directly; pairs without direct access: 0-2, which go through the host"
