"""The front door: what it lists, how it ends, and that it imports nothing heavy before the words are known to be right."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from datamodules.text import DataError
from pipelines import __main__ as front
from pipelines.catalog import choices_of, summary_of
from pipelines.config import compose
from pipelines.describe import help_table
from pipelines.errors import ConfigError
from pipelines.kinds import leaves, type_text
from pipelines.processes import MARK, mark
from pipelines.schema import COMPONENTS, GROUPS, SECTIONS
from pipelines.sources import docs_of, schema_of

HEAVY = ["torch", "lightning", "transformers", "datasets", "numpy", "wandb", "matplotlib", "pandas"]
WATCHED = """
import sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Watch())
from pipelines.__main__ import main
statuses = [main(words) for words in {lines}]
print(statuses, file=sys.stderr)
sys.exit(any(name in sys.modules for name in {heavy}))
"""


def watched(*lines, cwd):
    """Run command lines one after another in a process where heavy imports raise; return their statuses and what was said."""
    code = WATCHED.format(heavy=HEAVY, lines=[list(line) for line in lines])
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=cwd, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *errors, statuses = done.stderr.splitlines()
    return [int(n) for n in re.findall(r"\d+", statuses)], errors


def test_information_needs_no_heavy_import(tmp_path):
    lines = [[], ["--help"], ["-h"], ["--version"], ["evaluate", "--help"], ["doctor", "--help"], ["train", "--help"],
             ["train", "method=fira", "--help"], ["train", "experiment=quickstart", "--cfg"],
             ["train", "method=fira", "optim=galore", "--cfg"]]
    statuses, errors = watched(*lines, cwd=tmp_path)
    assert statuses == [0] * len(lines)
    assert errors == []


def test_wrong_words_are_refused_before_any_heavy_import(tmp_path):
    lines = [["trian"], ["train"], ["train", "method=fra"], ["train", "method=fira", "optim=fira", "optim.rnk=4"],
             ["train", "method=fira", "--dry"], ["train", "method=fira", "trainer.max_steps=8", "optim.lr=-1"],
             ["evaluate"], ["evaluate", "run=nowhere"], ["doctor", "now"]]
    statuses, errors = watched(*lines, cwd=tmp_path)
    assert statuses == [2] * len(lines)
    assert len(errors) == len(lines)
    assert all(error.startswith("error: ") for error in errors)
    assert errors[2].startswith("error: method: no such choice 'fra'. Did you mean 'fira'?")
    assert errors[3] == "error: optim.rnk: no such key. Did you mean 'rank'?"


@pytest.mark.parametrize("start", [
    pytest.param([str(Path(sys.executable).with_name("fivefold"))], id="script"),
    pytest.param([sys.executable, "-P", "-m", "pipelines"], id="module"),
])
def test_both_ways_to_start_work_from_a_folder_that_holds_packages_of_our_names(start, tmp_path):
    for name in ("configs", "pipelines", "datamodules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    done = subprocess.run([*start, "train", "method=fra"], cwd=tmp_path, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: method: no such choice 'fra'. Did you mean 'fira'? Choices: {', '.join(choices_of('method'))}\n"


def test_the_front_door_lists_commands_methods_and_every_choice(capsys):
    assert front.main([]) == 0
    text = capsys.readouterr().out
    for name, (module, purpose) in front.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", text, re.MULTILINE)
        assert Path(*module.split(".")).name + ".py" in os.listdir(Path(front.__file__).parent)
    for method in choices_of("method"):
        assert re.search(rf"^  {method} +{re.escape(summary_of('method', method))}$", text, re.MULTILINE)
        assert summary_of("method", method)
    assert all(choice in text for group in GROUPS for choice in choices_of(group))


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_says_in_one_line_what_it_is_for(group):
    assert all(len(summary_of(group, choice)) > 10 for choice in choices_of(group))


def test_help_after_a_method_lists_every_key_with_type_default_and_meaning():
    console = Console(width=500, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(help_table(["method=fira", "optim.rank=7"]))
    lines = [re.split(r" {2,}", line.strip()) for line in console.export_text().splitlines()]
    config = compose(["method=fira"], "show")
    schemas = {name: schema_of(getattr(config, name).target) for name in COMPONENTS}
    for section, schema in schemas.items():
        for key, kind in leaves(schema).items():
            (row,) = [line for line in lines if line[0] == f"{section}.{key}"]
            assert row[1] == type_text(kind)
            assert row[3] == docs_of(schema)[key]
    for section, schema in SECTIONS.items():
        assert {f"{section}.{key}" for key in leaves(schema)} <= {line[0] for line in lines}
    assert ["optim.rank", "integer", "7 (default 128)"] in [line[:3] for line in lines]
    assert ["optim.gap", "integer", "200"] in [line[:3] for line in lines]


def test_cfg_shows_every_value_once_with_its_origin(capsys):
    words = ["experiment=fira_debug", "optim.lr=0.5"]
    assert front.main(["train", "--cfg", *words]) == 0
    rows = re.findall(r"── (\w+): (.*)  \((.+)\)$", capsys.readouterr().out, re.MULTILINE)
    config = compose(words)
    assert sorted(origin for *_, origin in rows) == sorted(config.origins.values())
    assert ("lr", "0.5", "command line") in rows
    assert ("size", "debug", "experiment fira_debug") in rows
    assert ("max_steps", "8", "configs/trainer/debug.yaml") in rows
    assert ("pretrained", "null", "default") in rows


@pytest.mark.parametrize(("words", "said"), [
    (["trian"], "trian: no such command. Did you mean 'train'? Commands: "),
    (["method=fira"], "method=fira: not a command. Write fivefold train method=fira"),
    (["help"], "help: no such command. Did you mean '--help'?"),
    (["evaluate"], "run: which one? Write fivefold evaluate run=FOLDER"),
])
def test_a_wrong_command_is_refused_with_the_right_one(words, said, capsys):
    assert front.main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


class Bad(Dataset):
    """A data set whose third row is broken."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise DataError("novels.jsonl, line 3: no key 'text'. Write data.text_key=KEY")
        return index


def read_in_a_process():
    list(DataLoader(Bad(), num_workers=1))


def fail_with(error):
    def run(argv):
        raise error
    return run


@pytest.mark.parametrize(("run", "status", "said"), [
    (fail_with(ConfigError("optim.lr:\n  too\thigh")), 2, "error: optim.lr: too high\n"),
    (fail_with(DataError("a.txt: line 3")), 2, "error: a.txt: line 3\n"),
    (lambda argv: read_in_a_process(), 2, "error: novels.jsonl, line 3: no key 'text'. Write data.text_key=KEY\n"),
    (fail_with(ValueError("optim.targets: 'x' matches no matrix")), 2, "error: optim.targets: 'x' matches no matrix\n"),
    (fail_with(ValueError("something: else")), 1, "error: ValueError: something: else (add --traceback to see where)\n"),
    (fail_with(RuntimeError("out of\nmemory")), 1, "error: RuntimeError: out of memory (add --traceback to see where)\n"),
    (fail_with(KeyboardInterrupt()), 130, "interrupted\n"),
], ids=["words", "data", "data in a loader's process", "a key named by a component", "a bug", "a failure", "ctrl-c"])
def test_each_way_to_fail_has_its_status_and_one_line(run, status, said, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.doctor.run", run)
    assert front.main(["doctor"]) == status
    assert capsys.readouterr() == ("", said)


def test_traceback_shows_where_an_error_comes_from():
    with pytest.raises(ConfigError, match="no such choice 'fra'"):
        front.main(["train", "method=fra", "--traceback"])


@pytest.mark.parametrize("words", [[], ["train", "--help"]], ids=["plain text", "tables"])
def test_a_reader_that_has_seen_enough_gets_no_error(words, tmp_path):
    start = [sys.executable, "-P", "-m", "pipelines", *words]
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written: a quick writer would be done before a reader that leaves later
    done = subprocess.run(start, cwd=tmp_path, text=True, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_warning_is_one_line_without_a_place_in_our_code(tmp_path):
    start = [sys.executable, "-P", "-m", "pipelines", "train", "experiment=fira_debug", "module.lora.alpha=2", "--cfg"]
    done = subprocess.run(start, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    assert done.stderr == "warning: module.lora.alpha: no effect, because rank=0 means no LoRA\n"


def test_each_command_of_a_process_is_a_launch_of_its_own_unless_it_belongs_to_another(monkeypatch):
    """Two runs of a notebook, and what a test starts after it has trained itself, must not take one folder."""
    marks = []
    monkeypatch.setattr(front, "_dispatch", lambda words: marks.append(mark()) or time.sleep(0.002) or 0)
    monkeypatch.delenv(MARK, raising=False)
    assert front.main([]) == front.main([]) == 0
    assert len(set(marks)) == 2
    assert MARK not in os.environ
    monkeypatch.setenv(MARK, "the launch that started this process")
    front.main([])
    assert marks[2] == os.environ[MARK] == "the launch that started this process"
