"""What W&B keeps of a run: what it learned from, by digest and without its paths, and its checkpoints by place or whole."""

import json
import shutil
import subprocess

import pytest
import wandb

from pipelines import artifacts
from pipelines.artifacts import data_list, keep_artifacts, listed
from pipelines.config import compose


def described(*words, seed=1):
    return data_list(compose(["method=fira", "trainer.max_steps=1", *words]).data, seed)


def sha256sum(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    (folder / "more").mkdir(parents=True)
    (folder / "train.txt").write_text("one\ntwo\n")
    (folder / "more" / "valid.txt").write_text("three\n")
    return folder


def test_files_are_listed_by_name_size_and_digest_wherever_they_lie(text, tmp_path):
    found = described(f"data.root={text}")
    assert found["files"] == [
        {"key": "root", "name": f"{name}", "bytes": size, "sha256_of": "content", "sha256": sha256sum(text / name)}
        for name, size in (("more/valid.txt", 6), ("train.txt", 8))]
    assert str(tmp_path) not in json.dumps(found)
    shutil.copytree(text, tmp_path / "copy")
    assert described(f"data.root={tmp_path / 'copy'}", seed=2) == found
    (tmp_path / "copy" / "train.txt").write_text("one\ntoo\n")
    assert described(f"data.root={tmp_path / 'copy'}") != found
    by_pattern = described(f"data.train=[{text}/*.txt,{text}/more/*.txt]")["files"]
    assert [(row["key"], row["sha256"]) for row in by_pattern] == [("train", row["sha256"]) for row in reversed(found["files"])]


def test_data_that_are_made_are_told_by_settings_code_and_seed(monkeypatch, tmp_path):
    found = described()
    assert (found["files"], found["seed"], found["made_by"]) == ([], 1, "datamodules.fira.FiraData")
    assert described(f"data.cache={tmp_path}") == found
    assert described(seed=2) != found
    assert described("data.block_size=64")["settings"]["block_size"] == 64
    (tmp_path / "own").mkdir()
    for line in ("", "", "# changed\n"):
        (tmp_path / "own" / "data.py").open("a").write(line)
    monkeypatch.syspath_prepend(tmp_path / "own")
    before = artifacts._code("data.Own")
    (tmp_path / "own" / "data.py").write_text("# changed again\n")
    assert artifacts._code("data.Own") != before


def test_of_large_files_the_ends_count_and_of_very_many_the_names_and_sizes(monkeypatch, tmp_path):
    path = tmp_path / "large.bin"
    monkeypatch.setattr(artifacts, "WHOLE", 10)
    monkeypatch.setattr(artifacts, "END", 4)
    told = []
    for content in (b"abcd....wxyz", b"abcd,,,,wxyz", b"abcd....wxy!", b"abc!....wxyz", b"abcd.....wxyz"):
        path.write_bytes(content)
        (row,) = listed(path)
        told.append(row["sha256"])
    assert row["sha256_of"] == "size, first and last megabyte"
    assert told[0] == told[1]
    assert len({*told}) == 4
    monkeypatch.setattr(artifacts, "MOST", 2)
    for name in "abc":
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / name).write_text(name)
    (row,) = listed(tmp_path / "many")
    assert (row["count"], row["bytes"], row["sha256_of"]) == (3, 3, "names and sizes")


class Logged:
    """A run that remembers its artifacts."""

    id = "abcd1234"

    def __init__(self, folder):
        self.dir = str(folder / "files")
        self.kept = []

    def log_artifact(self, artifact, aliases=()):
        self.kept.append((artifact, list(aliases)))


@pytest.fixture
def folder(tmp_path):
    """A run folder with three checkpoints, of which two have names."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in (2, 4, 6):
        (checkpoints / f"step={step:08d}.ckpt").write_bytes(b"w" * step)
    (checkpoints / "last.ckpt").symlink_to("step=00000006.ckpt")
    (checkpoints / "best.ckpt").symlink_to("step=00000004.ckpt")
    return tmp_path / "run"


def kept_of(folder, *words):
    run = Logged(folder)
    keep_artifacts(run, compose(["experiment=fira_debug", "logger=wandb", "logger.data=false", *words]), folder)
    return run.kept


def test_checkpoints_are_named_by_place_and_size_unless_their_content_is_asked_for(folder):
    (best, best_names), (last, last_names) = kept_of(folder)
    assert (best_names, last_names) == (["best", "step-4"], ["last", "step-6"])
    assert (best.metadata["step"], best.metadata["bytes"], last.metadata["bytes"]) == (4, 4, 6)
    (entry,) = last.manifest.entries.values()
    assert entry.ref == (folder / "checkpoints" / "step=00000006.ckpt").as_uri()
    assert entry.local_path is None
    (whole, _), _ = kept_of(folder, "logger.checkpoints=upload")
    (entry,) = whole.manifest.entries.values()
    assert (entry.ref, entry.local_path, entry.size) == (None, str(folder / "checkpoints" / "step=00000004.ckpt"), 4)  # no copy of it
    assert kept_of(folder, "logger.checkpoints=off") == []


def test_a_checkpoint_that_is_best_and_newest_is_one_version_and_one_in_parts_is_a_folder(folder):
    checkpoints = folder / "checkpoints"
    parts = checkpoints / "step=00000008.ckpt"
    parts.mkdir()
    (parts / "rest.pt").write_bytes(b"rest")
    (parts / "__0_0.distcp").write_bytes(b"part")
    for name in ("last.ckpt", "best.ckpt"):
        (checkpoints / name).unlink()
        (checkpoints / name).symlink_to(parts.name)
    for words in ([], ["logger.checkpoints=upload"]):
        ((one, names),) = kept_of(folder, *words)
        assert names == ["best", "last", "step-8"]
        assert one.metadata["bytes"] == 8
        assert {name.rpartition("/")[2] for name in one.manifest.entries} == {"rest.pt", "__0_0.distcp"}


def test_an_artifact_that_cannot_be_made_costs_a_warning_and_not_the_run(folder, capsys, monkeypatch):
    monkeypatch.setattr(Logged, "log_artifact", lambda self, artifact, aliases=(): (_ for _ in ()).throw(wandb.errors.CommError("gone")))
    assert kept_of(folder) == []
    assert capsys.readouterr().err == "warning: W&B has not all artifacts of this run (CommError: gone)\n"


def test_a_training_tells_wandb_its_kind_its_figures_its_data_and_its_checkpoints(small_wandb, here, debug, tmp_path):
    done = here(*debug, "run.name=online", "logger=wandb", "logger.mode=online", "run.tags=[mine]", "logger.group=g",
                "checkpoint.best=val/loss", "checkpoint.best_is=lowest")
    assert done.returncode == 0, done.stderr
    assert "warning: W&B" not in done.stderr
    (run,) = small_wandb.runs.values()
    folder = tmp_path / "online"
    results = json.loads((folder / "run.json").read_text())["results"]
    assert (run.state, run.job_type, run.group) == ("finished", "train", "g")
    assert run.tags == ["mine", "fira", "fira_debug", "optim=fira"]
    assert {name: run.summary[name] for name in results} == pytest.approx(results)
    assert run.config["started"]["value"]["packages"]["wandb"] == wandb.__version__
    assert {made["state"] for made in small_wandb.artifacts} == {"COMMITTED"}
    names = {(made["artifactTypeName"], made["artifactCollectionName"]) for made in small_wandb.artifacts}
    assert names == {("dataset", "data-fira"), ("model", f"checkpoint-{run.name}")}
    assert json.loads(small_wandb.uploads["/file/data.json"])["made_by"] == "datamodules.fira.FiraData"
    places = {name: (folder / "checkpoints" / f"{name}.ckpt").resolve() for name in ("best", "last")}
    aliases = {alias["alias"] for made in small_wandb.artifacts if made["artifactTypeName"] == "model" for alias in made["aliases"]}
    assert aliases == {"best", "last", "latest", *(f"step-{int(place.stem.partition('=')[2])}" for place in places.values())}
    entries = [entry for name, content in small_wandb.uploads.items() if "/manifest/" in name
               for entry in json.loads(content)["contents"].values()]
    assert {entry["ref"] for entry in entries if "ref" in entry} == {place.as_uri() for place in places.values()}
    assert not any(name.endswith(".ckpt") for name in small_wandb.uploads)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"secret0000" in path.read_bytes()]
    again = here("report", "wandb=me/fivefold", "metric=val/loss", f"to={tmp_path / 'page'}")
    assert again.returncode == 0, again.stderr
    assert f"| {results['val/loss']:.6g} |" in (tmp_path / "page" / "report.md").read_text()


def test_an_examination_is_one_for_wandb_too(small_wandb, here, tmp_path):
    done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", "data.questions=1", "data.profiles=[hard]", "run.name=heard",
                f"run.root={tmp_path}", "logger=wandb", "logger.mode=online", "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    (run,) = small_wandb.runs.values()
    assert (run.state, run.job_type, run.tags) == ("finished", "evaluate", ["av_odyssey", "optim=adamw"])
    results = json.loads((tmp_path / "heard" / "run.json").read_text())["results"]
    assert {name: run.summary[name] for name in results} == pytest.approx(results)


def test_wandb_has_an_examinations_questions_with_their_media_and_its_pictures(small_wandb, here, tmp_path):
    done = here("evaluate", "method=av_odyssey", "module.adapter=oracle", "data.questions=2", "data.profiles=[hard]",
                "data.control=swapped", "run.name=heard", f"run.root={tmp_path}", "logger=wandb", "logger.mode=online",
                "trainer.threads=1", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    (run,) = small_wandb.runs.values()
    assert {"failure-1", "failure-4"} <= run.summary.keys()
    examples, answers = (json.loads(small_wandb.uploads[f"/file/{table}.table.json"]) for table in ("examples", "answers"))
    first = dict(zip(examples["columns"], examples["data"][0], strict=True))
    assert first["audio1"]["_type"] == "audio-file"
    assert any(name.endswith(first["audio1"]["path"]) for name in small_wandb.uploads)
    row = dict(zip(answers["columns"], answers["data"][0], strict=True))
    assert row["prompt"].startswith("How many sounds are there in [audio1]?")
    assert row["prompt"].endswith("Answer with the option's letter from the given choices directly.")
    assert row["seconds"] >= 0
    page = (tmp_path / "heard" / "report.html").read_text()
    assert page.count("src='data:image/png;base64,") == 4
