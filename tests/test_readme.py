"""Every command that the README prints does what it says there, and the pages' trainings and examinations compose."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from datamodules.tokenization import train_tokenizer
from lightning_modules.language.llama import new_llama
from pipelines.__main__ import COMMANDS
from pipelines.catalog import choices_of
from pipelines.evidence import finished_runs

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


def commands_in(text):
    return [line for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()
            if line.startswith(("make", "fivefold"))]


def words_of(line):
    return shlex.split(line, comments=True)


def is_composed(line):
    """Tell whether a line takes the settings of a training."""
    return words_of(line)[1:2] == ["train"] or (words_of(line)[1:2] == ["evaluate"] and "run=FOLDER" not in line)


COMMAND_LINES = commands_in(README)
DOCUMENTED = sorted({line for page in PAGES for line in commands_in(page.read_text())} - set(COMMAND_LINES))
OTHERS = [line for line in [*COMMAND_LINES, *DOCUMENTED] if line.startswith("fivefold") and not is_composed(line) and "submit" not in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, for commands that need one."""
    from pipelines.__main__ import main

    root, threads = tmp_path_factory.mktemp("readme"), torch.get_num_threads()
    cache = tmp_path_factory.getbasetemp().parent / "fivefold-cache"
    assert main(["train", "experiment=fira_debug", f"run.root={root}", "run.name=done", f"data.cache={cache}", "trainer.threads=1",
                 "logger.group=shown", "trainer.max_steps=2", "checkpoint.every_n_steps=1"]) == 0
    torch.set_num_threads(threads)
    return root / "done"


def test_the_readme_shows_make_targets_and_every_command():
    assert {words_of(line)[1] for line in COMMAND_LINES if line.startswith("make")} >= {"demo", "test"}
    assert {words[1] for words in map(words_of, COMMAND_LINES) if words[0] == "fivefold" and len(words) > 1} == set(COMMANDS)


@pytest.mark.parametrize("target", sorted({*re.findall(r"\bmake (\w+)(?=`|\n)", README), "docs", "lint", "bench"}))
def test_make_targets_exist(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line.startswith("fivefold train") and "run.resume=FOLDER" not in line])
def test_training_commands_compose(here, line):
    done = here(*words_of(line)[1:], "--cfg")
    assert done.returncode == 0, done.stderr
    for key in (word.partition("=")[0].rpartition(".")[2] for word in words_of(line) if "." in word.partition("=")[0]):
        assert re.search(rf"^.* {key}: .*\(command line\)$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line.startswith("fivefold submit")])
def test_submitted_commands_make_a_script(here, line, monkeypatch):
    monkeypatch.setenv("PATH", "")  # whatever cluster this machine belongs to
    words = words_of(line)[2:]
    done = here("submit", *([] if "--dry-run" in words else ["--dry-run"]), *words)
    assert done.returncode == 0, done.stderr
    nodes = words[words.index("--nodes") + 1]
    assert f"\n#SBATCH --nodes={nodes}\n" in done.stdout
    assert f"{nodes} nodes x " in done.stdout


@pytest.mark.parametrize("line", [pytest.param(line, marks=pytest.mark.slow) if " estimate " in line else line
                                  for line in OTHERS])
def test_other_commands_run(here, finished, tmp_path, line, monkeypatch):
    monkeypatch.setattr("pipelines.tracked.tracked_runs", lambda project, group: finished_runs([finished]))  # W&B is not asked
    trial = ["--dry-run"] if "--local" in line else []  # whole sweeps are those of test_sweep.py
    known = {"FOLDER": str(finished), "RUNS": str(finished.parent), "group=NAME": "group=shown"}
    done = here(*(re.sub("|".join(known), lambda found: known[found[0]], word) for word in words_of(line)[1:]), *trial)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert all((tmp_path / word.removeprefix("to=")).exists() for word in words_of(line) if word.startswith("to="))


def test_the_fine_tuning_command_trains_a_local_model_on_local_rows(here, tmp_path, cache):
    line = next(line for line in DOCUMENTED if "data.tokenizer=MODEL" in line)
    rows = [{"question": f"What is {n} plus one?", "answer": n + 1} for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer([f"Question: {row['question']} Answer: {row['answer']}" for row in rows], 300)
    tokenizer.save_pretrained(tmp_path / "model")
    new_llama("debug", len(tokenizer), 64, tokenizer.eos_token_id).save_pretrained(tmp_path / "model")
    words = [word.replace("MODEL", str(tmp_path / "model")) for word in words_of(line)[1:]]
    done = here(*words, "data.block_size=64", f"data.cache={cache}", f"run.root={tmp_path / 'runs'}", "run.name=tuned", "logger=csv",
                "trainer.threads=1")
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)  lr", done.stdout)]
    assert losses[-1] < losses[0]
    saved = torch.load(tmp_path / "runs" / "tuned" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in saved)


def test_a_run_folder_holds_what_the_readme_lists_and_a_finished_run_can_be_lengthened(here, finished):
    listed = {"config.yaml", "run.json", "metrics.csv", "checkpoints", "loss.png"}
    assert listed <= {path.name for path in finished.iterdir()}
    assert all(f"`{name}" in README for name in listed)
    done = here("train", f"run.resume={finished}", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stdout


def test_the_methods_that_are_said_to_work_are_those_that_exist():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", README, re.MULTILINE)
    assert len(rows) == 5
    assert {name for name, today in rows if today.startswith("works")} == set(choices_of("method"))


def test_experiments_and_links_that_the_readme_names_exist():
    assert set(re.findall(r"experiment=(\w+)", README)) <= set(choices_of("experiment"))
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) >= 3
    assert all((REPOSITORY / link).is_file() for link in links)


@pytest.mark.parametrize("line", [line for line in DOCUMENTED if is_composed(line)])
def test_commands_of_the_pages_that_the_readme_does_not_show_compose(here, finished, line):
    words = [word.replace("run.resume=FOLDER", f"run.resume={finished}") for word in words_of(line)[2:]]
    done = here("train", *words, *([] if "--help" in words else ["--cfg"]))
    assert done.returncode == 0, done.stderr


def test_the_keys_and_files_that_a_methods_page_names_exist(here):
    for method in choices_of("method"):
        page = (REPOSITORY / "docs" / f"{method}.md").read_text()
        shown = here("train", f"method={method}", "--help").stdout
        for key in re.findall(r"`((?:module|optim|data)\.[a-z_.]+)(?:=\w+)?`", page):
            assert re.search(rf"\b{re.escape(key)}\b|\b{key.rpartition('.')[2]}\b", shown), key
