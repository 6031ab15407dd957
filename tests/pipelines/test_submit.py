"""fivefold submit, without a Slurm: what it prints, what it refuses before anything is queued, and what it hands to sbatch."""

import json
import re
import subprocess

import pytest

from pipelines.batch import Job, options
from pipelines.config import ConfigError, compose, from_yaml
from pipelines.submit import read, settled
from tests.pipelines.fake_slurm import FakeSlurm


@pytest.fixture
def words(tmp_path, cache):
    return ["train", "experiment=fira_debug", f"run.root={tmp_path / 'runs'}", f"data.cache={cache}"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


def sbatch_options(script):
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def test_a_dry_run_without_slurm_prints_the_script_and_one_line_of_what_is_missing(here, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = here("submit", "--nodes", "3", "--ntasks-per-node", "2", "--time", "60", "--job-name", "dry", "--dry-run", "--", *words,
                "strategy=ddp")
    assert (done.returncode, done.stderr) == (0, "")
    script, _, checks = done.stdout.partition("\nprocesses: ")
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert {"--nodes=3", "--ntasks-per-node=2", "--time=60", "--job-name=dry"} <= set(sbatch_options(script))
    assert checks.startswith("3 nodes x 2 tasks = 6 = trainer.num_nodes x trainer.devices\n")
    missing = [line for line in checks.splitlines() if "no sbatch" in line]
    assert missing == ["Slurm: no sbatch on this machine, so whether a cluster takes this job was not asked; nothing was queued"]
    assert not (tmp_path / "runs").exists()


def test_without_slurm_nothing_can_be_queued_and_one_line_says_what_to_do(here, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = here("submit", "--", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: submit: no sbatch on this machine. Go to a login node of a Slurm cluster, or add --dry-run "
                           "to see the script\n")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_does_not_answer_is_told_from_one_that_is_missing(here, words, tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm", sinfo="echo 'slurm_load_partitions: error: Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setenv("PATH", fake.path)
    done = here("submit", "--dry-run", "--", *words)
    assert done.returncode == 0
    assert "Slurm: no cluster answers (Unable to contact slurm controller), so" in done.stdout


def test_a_dry_run_asks_the_cluster_and_fails_where_it_would_refuse(here, words, slurm, tmp_path, monkeypatch):
    done = here("submit", "--dry-run", "--", *words)
    assert done.returncode == 0
    assert done.stdout.endswith("Slurm: sbatch: Job 1 to start now; nothing was queued\n")
    assert slurm.calls("sbatch") == ["--test-only"]
    strict = FakeSlurm(tmp_path / "strict", sbatch="cat >/dev/null; echo 'allocation failure: error: invalid partition' >&2; exit 1")
    monkeypatch.setenv("PATH", strict.path)
    done = here("submit", "--dry-run", "--", *words)
    assert done.returncode == 2
    assert done.stdout.endswith("Slurm: invalid partition; nothing was queued\n")


@pytest.mark.parametrize(("flags", "more", "said"), [
    (["--nodes", "2"], ["trainer.num_nodes=3", "strategy=ddp"],
     "2 nodes x 1 tasks would be queued, for a run of trainer.num_nodes=3 x trainer.devices=1 processes"),
    (["--nodes=2", "--ntasks-per-node=4"], ["trainer.devices=8", "strategy=ddp"],
     "2 nodes x 4 tasks would be queued, for a run of trainer.num_nodes=2 x trainer.devices=8 processes"),
    (["--ntasks-per-node", "4", "--gpus-per-node", "8"], ["strategy=ddp"], "--gpus-per-node 8: but --ntasks-per-node 4, and both say"),
    (["--nodes", "2"], ["strategy=single"], "strategy"),
    (["--time", "1"], [], "time: must be above cluster.margin=120 s, not 1, which is 60 s"),
    (["--partitoin", "gpu"], [], "--partitoin: no such flag of submit. Did you mean '--partition'?"),
    (["--nodes"], [], "--nodes: no value. Write --nodes VALUE"),
    ([], ["optim.rnk=3"], "optim.rnk: no such key. Did you mean 'rank'?"),
    ([], ["cluster=local"], "cluster=local: queues nothing"),
])
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_queued(flags, more, said, here, words, slurm, tmp_path):
    done = here("submit", *flags, "--", *words, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert slurm.calls("sbatch") == []
    assert not (tmp_path / "runs").exists()


def test_sbatch_gets_a_script_beside_the_code_and_every_value_and_the_number_of_the_job_is_kept(here, words, slurm, tmp_path):
    done = here("submit", "--nodes", "2", "--job-name", "queued", "--", *words, "strategy=ddp", "optim.rank=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("job 4711 is queued\n")
    folder = tmp_path / "runs" / "queued"
    assert (folder / "job" / "number").read_text() == "4711"
    assert (slurm.folder / "script").read_text() == (folder / "job" / "train.sbatch").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "queued"
    config = from_yaml(folder / "job" / "config.yaml")
    assert (config.trainer.num_nodes, config.optim.config.rank, config.run.name) == (2, 3, "queued")
    assert {path.name for path in (folder / "job" / "code").iterdir()} == {"pipelines", "lightning_modules", "datamodules", "configs"}


def test_what_sbatch_refuses_leaves_no_folder(here, words, tmp_path, monkeypatch):
    strict = FakeSlurm(tmp_path / "strict", sbatch="echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    monkeypatch.setenv("PATH", strict.path)
    done = here("submit", "--job-name", "one", "--", *words)
    assert (done.returncode, done.stderr) == (2, "error: submit: sbatch says: Batch job submission failed: Invalid account\n")
    assert not (tmp_path / "runs" / "one").exists()


def test_a_run_is_not_queued_twice_and_the_job_that_has_it_is_named(here, words, slurm, monkeypatch):
    submit = ["submit", "--job-name", "one", "--", *words]
    monkeypatch.setenv("STATE", "PENDING")
    assert here(*submit).returncode == 0
    again = here(*submit)
    assert again.returncode == 2
    assert "one is job 4711 already (PENDING); scancel 4711, or choose another name" in again.stderr
    monkeypatch.setenv("STATE", "")  # that job has ended
    assert here(*submit).returncode == 0
    assert len(slurm.calls("sbatch")) == 2


def test_names_that_a_shell_or_sbatch_would_misread_reach_both_as_they_are(words, tmp_path):
    _, meant = read(["--job-name", "a run; 100%", "--", *words])
    config, folder = settled(compose(meant))
    found = dict(option.partition("=")[::2] for option in options(Job(folder, config)))
    assert found["--job-name"] == '"a run; 100%%"'  # sbatch takes % for the start of a pattern
    assert found["--output"] == f'"{tmp_path}/runs/a run; 100%%/job/log.txt"'
    with pytest.raises(ConfigError, match="quotation mark"):
        options(Job(folder.with_name('a "run"'), config))


def test_gpus_are_asked_for_by_node_and_only_where_they_are_wanted(words):
    def asked(*more):
        config = compose(["cluster=slurm", *words[1:], "strategy=ddp", "trainer.devices=4", *more])
        return [option for option in options(Job(settled(config)[1], config)) if "--gpu" in option]

    assert asked("trainer.accelerator=gpu") == ["--gpus-per-node=4"]
    assert asked("trainer.accelerator=gpu", "cluster.gpu_type=a100") == ["--gpus-per-node=a100:4"]
    assert asked("trainer.accelerator=cpu") == []
