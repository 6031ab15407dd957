"""Wrong words and wrong files die in one line that names the key and says what to write instead."""

import re

import pytest

from pipelines.__main__ import main
from pipelines.config import ConfigError, compose

VALID = ["method=fira", "trainer.max_steps=8"]

WORDS = [  # what is added to VALID, or stands there for the same key -> how the line opens, and the mend that it offers
    # choices
    ("method=fra", "method:", "Did you mean 'fira'?"),
    ("optim=adam", "optim:", "Did you mean 'adamw'? Choices: adamw, fira, galore"),
    ("optim=FIRA", "optim:", "Did you mean 'fira'?"),
    ("optim=../optim/adamw", "optim:", "Choices: adamw, fira, galore"),
    ("experiment=quikstart", "experiment:", "Did you mean 'quickstart'?"),
    ("trainer=debgu", "trainer:", "Did you mean 'debug'?"),
    ("logger=wandbb", "logger:", "Did you mean 'wandb'?"),
    ("strategy=many", "strategy:", "Choices: "),
    ("optim=", "optim=:", "Write optim=VALUE"),
    # groups and sections
    ("optimizer=adamw", "optimizer:", "Did you mean 'optim'?"),
    ("lr=0.1", "lr:", "Did you mean 'optim.lr=0.1'?"),
    ("max_steps=3", "max_steps:", "Did you mean 'trainer.max_steps=3'?"),
    ("nothing=3", "nothing:", "Groups: config, method, optim"),
    ("trainer=stdlib", "trainer:", "no such choice"),
    ("module=tiny", "module:", "Write module.KEY=tiny"),
    ("model.size=tiny", "model.size:", "Did you mean 'module'?"),
    ("optimizer.lr=1", "optimizer.lr:", "Did you mean 'optim'?"),
    # keys
    ("optim.rnk=4", "optim.rnk:", "Did you mean 'rank'?"),
    ("optim.Rank=4", "optim.Rank:", "Did you mean 'rank'?"),
    ("optim.schedule.nme=linear", "optim.schedule.nme:", "Did you mean 'name'?"),
    ("optim.schedule={nme: linear}", "optim.schedule.nme:", "Did you mean 'name'?"),
    ("data.batchsize=4", "data.batchsize:", "Did you mean 'batch_size'?"),
    ("optim.zzz=1", "optim.zzz:", "Keys: alpha, "),
    ("optim.a.b.c=1", "optim.a.b.c:", "Keys: alpha, "),
    ("optim.max_steps=3", "optim.max_steps:", "Did you mean 'trainer.max_steps'?"),
    ("trainer.lr=0.1", "trainer.lr:", "Did you mean 'optim.lr'?"),
    ("module.rank=3", "module.rank:", "Did you mean 'module.lora.rank'?"),
    ("optim.lr.x=3", "optim.lr.x:", "Write optim.lr=VALUE"),
    ("optim.schedule=linear", "optim.schedule:", "Write optim.schedule.KEY=VALUE"),
    (("optim.lr=0.1", "optim.lr=0.2"), "optim.lr:", "given twice, as '0.1' and as '0.2'. Keep one"),
    (("optim=fira", "optim=fira"), "optim:", "given twice"),
    (("data=files", "data.source=hub"), "data.source:", "given twice, as 'files' and as 'hub'. Keep one"),
    (("data=stdlb",), "data.source:", "no such choice 'stdlb'. Did you mean 'stdlib'?"),
    # shapes of words
    ("optim.lr", "optim.lr:", "Write optim.lr=VALUE"),
    ("adamw", "adamw:", "Did you mean 'optim=adamw'?"),
    ("optim.adamw", "optim.adamw:", "Did you mean 'optim=adamw'?"),
    ("trainer", "trainer:", "Write trainer=CHOICE, one of: "),
    ("trainer.max_epochs=", "trainer.max_epochs=:", "or trainer.max_epochs=null for no value"),
    ("=3", "=3:", "Write section.key=value"),
    ("optim..lr=3", "optim..lr=3:", "Write section.key=value"),
    ("--optim.lr=3", "--optim.lr=3:", "Write optim.lr=3"),
    ("--dry-rn", "--dry-rn:", "Did you mean '--dry-run'?"),
    ("run.notes=\udcff", "'run.notes=", "Write it in the encoding of your terminal"),
    # types
    ("optim.lr=fast", "optim.lr:", "expected number, got 'fast'"),
    ("optim.lr=true", "optim.lr:", "expected number, got true"),
    ("optim.lr=.nan", "optim.lr:", "expected number"),
    ("optim.lr=inf", "optim.lr:", "expected number"),
    ("optim.rank=4.5", "optim.rank:", "expected integer, got 4.5"),
    ("optim.rank=1e2", "optim.rank:", "Write optim.rank=100"),
    ("optim.rank=null", "optim.rank:", "expected integer, got null"),
    ("optim.residual=2", "optim.residual:", "expected true or false, got 2"),
    ("optim.targets=attn", "optim.targets:", "Write optim.targets=[attn]"),
    ("optim.targets=[[attn]]", "optim.targets:", "expected list of text"),
    ("run.tags=[a, 2.50]", "run.tags:", "in quotes"),
    ("optim.lr=${optim.eps}", "optim.lr:", "A value cannot refer to another key"),
    ("run.notes=${oc.env:HOME}", "run.notes:", "A value cannot refer to another key"),
    ("optim.variant=oficial", "optim.variant:", "Did you mean 'official'? Choices: official, paper"),
    ("trainer.precision=16", "trainer.precision:", "Did you mean '16-mixed'?"),
    ("trainer.profiler=simpel", "trainer.profiler:", "Did you mean 'simple'? Choices: simple, advanced, pytorch, null"),
    # YAML inside a word
    ("optim.targets=[attn", "optim.targets:", "expected ',' or ']'"),
    ("optim.schedule={name: linear, name: cosine}", "optim.schedule:", "the key 'name' is given twice"),
    ("optim.targets=*x", "optim.targets:", "put text in quotes"),
    ("optim.targets=!!set {a}", "optim.targets:", "put text in quotes"),
    ("optim.targets=" + 5000 * "[", "optim.targets:", "too deeply nested"),
    # ranges
    ("optim.lr=-1", "optim.lr:", "must be above 0, not -1.0"),
    ("optim.schedule.warmup=-1", "optim.schedule.warmup:", "must be 0 or above"),
    ("optim.targets=[attn, '(']", "optim.targets:", "'(' is not a regular expression (missing ), unterminated subpattern at position 0)"),
    ("run.seed=-1", "run.seed:", "must lie in 0..2^32-1, not -1"),
    ("run.name=a/b", "run.name:", "run.root says where it lies"),
    ("trainer.max_time=1h", "trainer.max_time:", "such as 00:01:30:00"),
    ("trainer.limit_val_batches=-1", "trainer.limit_val_batches:", "must be 0 or above"),
    ("checkpoint.every_n_steps=0", "checkpoint.every_n_steps:", "must be above 0"),
    # what cannot go together
    ("trainer.devices=2", "trainer.devices:", "Write trainer.devices=1"),
    ("trainer.num_nodes=2", "trainer.num_nodes:", "Write trainer.num_nodes=1"),
    (("optim.residual=false", "optim.only_scaling=true"), "optim.only_scaling:", "choose one of the two"),
    ("data.source=files", "data.source:", "root or train"),
    # classes
    ("optim._target_=lightning_modules.optim.adamw.Adam", "optim._target_:", "Did you mean 'lightning_modules.optim.adamw.AdamW'?"),
    ("optim._target_=lightning_modules.optim.adam.AdamW", "optim._target_:", "Did you mean 'lightning_modules.optim.adamw.AdamW'?"),
    ("optim._target_=3", "optim._target_:", "Write PACKAGE.MODULE.CLASS"),
    ("optim._target_=pipelines.build.Built", "optim._target_:", "takes no dataclass called config"),
    ("data._target_=lightning_modules.optim.fira.Fira", "data._target_:", "but data is given (config)"),
    # files
    ("config=nowhere.yaml", "config:", "no such file nowhere.yaml"),
    ("config=.", "config:", "Write config=config.yaml"),
    ("config=" + 5000 * "a", "config:", "no such file"),
]

FILES = [  # text of a config=FILE -> how the line opens, and the mend that it offers
    ("optm: {lr: 1}", "optm:", "Did you mean 'optim'? (in F.yaml)"),
    ("optim: {rnk: 1}", "optim.rnk:", "Did you mean 'rank'? (in F.yaml)"),
    ("optim: 3", "optim:", "must hold keys and values, not '3' (in F.yaml)"),
    ("optim: {lr: fast}", "optim.lr:", "expected number, got 'fast' (in F.yaml)"),
    ("optim: {lr: -1}", "optim.lr:", "must be above 0, not -1.0 (in F.yaml)"),
    ("optim: {lr: 1}\noptim: {rank: 2}", "F.yaml line 2:", "the key 'optim' is given twice"),
    ("optim:\n  lr: 1\n  lr: 2", "F.yaml line 3:", "the key 'lr' is given twice"),
    ("optim: {lr: 1", "F.yaml:", "expected ',' or '}'"),
    ("optim:\n\tlr: 1", "F.yaml line 2:", "cannot be read as YAML"),
    ("? [a, b]\n: 3", "F.yaml line 1:", "a key must be one word"),
    ("optim: &x {lr: 1}\nmodule: *x", "F.yaml line 1:", "aliases (&x, *x) are not used"),
    ("- optim", "F.yaml:", "must hold keys and values, not list"),
    ("run: {notes: 1.50}", "run.notes:", "in quotes (in F.yaml)"),
    ("run: {name: [a]}", "run.name:", "expected text or null, got [a] (in F.yaml)"),
    ("defaults: {optimizer: fira}", "defaults.optimizer:", "Did you mean 'optim'?"),
    ("defaults: {optim: adam}", "optim:", "Did you mean 'adamw'? Choices: adamw, fira, galore (in F.yaml)"),
    ("defaults: [optim]", "defaults:", "must hold keys and values"),
    ("defaults: {method: kpd}", "method=fira:", "Leave one of the two out"),
    ("trainer: {max_steps: 1.5}", "trainer.max_steps:", "expected integer, got 1.5 (in F.yaml)"),
    (b"\xff\xfe", "F.yaml:", "is not a text file in UTF-8"),
]


def one_line(capsys, *words):
    """Run the command line, which has to refuse, and return its error."""
    status = main(["train", "--cfg", *words])
    said = capsys.readouterr()
    assert status == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    return said.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("words", "opening", "mend"), WORDS, ids=lambda value: str(value)[:40].encode("ascii", "replace").decode())
def test_a_wrong_word_is_refused_in_one_line_with_the_key_and_the_mend(words, opening, mend, capsys):
    wrong = [words] if isinstance(words, str) else words
    valid = [word for word in VALID if word.partition("=")[0] != wrong[0].partition("=")[0]]
    error = one_line(capsys, *valid, *wrong)
    assert error.startswith(opening)
    assert mend in error


@pytest.mark.parametrize(("text", "opening", "mend"), FILES, ids=lambda value: str(value)[:40].replace("\n", " "))
def test_a_wrong_file_is_refused_in_one_line_with_the_key_the_file_and_the_mend(text, opening, mend, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "F.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    error = one_line(capsys, "method=fira", "config=F.yaml")
    assert error.startswith(opening)
    assert mend in error


@pytest.mark.parametrize(("words", "mend"), [
    ([], "Write method=NAME, one of: "),
    (["method=fira"], "Write trainer.max_steps=N or trainer.max_epochs=N"),
])
def test_a_run_without_a_method_or_an_end_is_refused(words, mend):
    with pytest.raises(ConfigError, match=re.escape(mend)):
        compose(words)


def test_every_mutation_differs_from_a_valid_command_line_in_one_thing(capsys):
    assert len(WORDS) + len(FILES) >= 40
    assert main(["train", "--cfg", *VALID]) == 0
    assert "optim" in capsys.readouterr().out
