"""fivefold report: runs that differ in their seeds only are one contender, and its figures are those that scipy finds."""

import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_1samp, ttest_rel, wilcoxon

from pipelines.evidence import contenders, difference, finished_runs, mean_curve, read_run, summary, with_settings


def a_run(root, name, seed, results, status="finished", time=0.0, group=None, curve=(), **settings):
    """Write a run folder as training leaves it; settings are keys with __ for a dot."""
    folder = root / name
    folder.mkdir(parents=True)
    tree = {"run": {"name": name, "seed": seed}, "logger": {"group": group}}
    for key, value in settings.items():
        section, _, rest = key.partition("__")
        tree.setdefault(section, {})[rest] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    started = [{"time": time, "git_commit": "abc", "python": "3.11", "packages": {"torch": "2.13"}}]
    (folder / "run.json").write_text(json.dumps({"status": status, "seed": seed, "method": "fira", "results": results, "started": started}))
    lines = ["step,epoch,val/loss", *(f"{step},0,{value}" for step, value in curve)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def root(tmp_path):
    """Two optimizers under three and four seeds, one run that failed, and one of another group."""
    rng = np.random.default_rng(0)
    for seed in range(1, 5):
        for optim, base in (("adamw", 2.0), ("fira", 1.7)):
            if (optim, seed) != ("fira", 4):
                values = base + 0.1 * rng.standard_normal(3)
                a_run(tmp_path, f"{optim}-{seed}", seed, {"val/loss": values[-1], "step": 9, "seconds": seed * 1.0}, group="g",
                      curve=list(zip((2, 5, 8), values)), defaults__optim=optim, optim__lr=base)
    a_run(tmp_path, "broken", 1, {"val/loss": 0.0}, status="failed", group="g", defaults__optim="fira", optim__lr=1.7)
    a_run(tmp_path, "other", 1, {"val/loss": 0.0}, group="h", defaults__optim="fira", optim__lr=9.9)
    return tmp_path


def values_of(root, optim, seeds):
    return [read_run(root / f"{optim}-{seed}").results["val/loss"] for seed in seeds]


def test_incomplete_evaluations_are_named_and_left_out(root, capsys):
    before = len(finished_runs([root]))
    a_run(root, "lacking", 1, {"val/loss": 0.0}, status="incomplete")
    assert len(finished_runs([root])) == before
    assert capsys.readouterr().err.startswith("warning: lacking: left out, because the evaluation is incomplete")


def test_means_intervals_and_paired_tests_are_those_of_scipy(root):
    adamw, fira = contenders(with_settings(finished_runs([root]), {"logger.group": "g"}))
    assert (adamw.name, fira.name) == ("optim=adamw", "optim=fira")
    values = values_of(root, "adamw", range(1, 5))
    known, told = ttest_1samp(values, 0).confidence_interval(0.95), summary(adamw.values("val/loss").values())
    assert (told.mean, told.n) == (pytest.approx(np.mean(values)), 4)
    assert told.half == pytest.approx((known.high - known.low) / 2)
    apart = difference(fira, adamw, "val/loss")
    mine, theirs = values_of(root, "fira", (1, 2, 3)), values_of(root, "adamw", (1, 2, 3))
    paired = ttest_rel(mine, theirs)
    assert apart.t_test == pytest.approx(paired.pvalue)
    assert apart.summary.half == pytest.approx(np.ptp(paired.confidence_interval(0.95)) / 2)
    assert apart.wilcoxon == pytest.approx(wilcoxon(mine, theirs).pvalue)


def test_one_seed_has_no_interval_and_no_test_nor_have_figures_that_are_not_finite(tmp_path):
    a_run(tmp_path, "one", 1, {"val/loss": 1.0}, optim__lr=1)
    a_run(tmp_path, "two", 1, {"val/loss": 3.0}, optim__lr=2)
    one, two = contenders(finished_runs([tmp_path]))
    assert np.isnan(summary([1.0]).half)
    assert (summary([1.0, np.inf]).mean, summary([1.0, np.inf]).n) == (np.inf, 2)
    assert np.isnan([summary([1.0, np.nan]).mean, summary([1.0, np.inf]).half]).all()
    apart = difference(two, one, "val/loss")
    assert apart.summary.mean == 2.0
    assert np.isnan([apart.summary.half, apart.t_test, apart.wilcoxon]).all()


def test_of_two_runs_of_one_seed_the_newer_counts(tmp_path):
    a_run(tmp_path, "old", 1, {"val/loss": 1.0}, time=1.0)
    a_run(tmp_path, "new", 1, {"val/loss": 2.0}, time=2.0)
    (only,) = contenders(finished_runs([tmp_path]))
    assert only.values("val/loss") == {1: 2.0}


def test_contenders_that_files_do_not_tell_apart_are_named_by_their_values(tmp_path):
    for lr in (1, 2):
        a_run(tmp_path, f"a{lr}", 1, {"val/loss": 1.0}, defaults__optim="fira", optim__lr=lr, trainer__threads=lr)
    assert [c.name for c in contenders(finished_runs([tmp_path]))] == ["optim.lr=1", "optim.lr=2"]


def test_the_mean_curve_is_taken_where_all_seeds_were_measured(root):
    adamw, _ = contenders(with_settings(finished_runs([root]), {"logger.group": "g"}))
    (root / "adamw-1" / "metrics.csv").write_text("step,epoch,val/loss\n5,0,1.0\n8,0,2.0\n")
    steps, means, halves = mean_curve(adamw, "val/loss")
    assert steps.tolist() == [6, 9]
    last = [2.0, *values_of(root, "adamw", (2, 3, 4))]
    assert means[1] == pytest.approx(np.mean(last))
    assert halves[1] == pytest.approx(summary(last).half)


def test_the_command_prints_and_writes_tables_and_curves(root, here, tmp_path):
    done = here("report", str(root), "group=g", f"to={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "report.md").read_text()
    mean = f"{np.mean(values_of(root, 'fira', (1, 2, 3))):.6g}"
    assert f"| optim=fira | 3 | {mean} |" in page
    assert mean in done.stdout
    assert mean in (tmp_path / "out" / "report.html").read_text()
    assert "broken" not in page
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000


def test_runs_of_several_methods_get_a_section_each_with_figures_pictures_and_folder(root, here, tmp_path):
    out, folder = tmp_path / "out", a_run(root, "a graph", 1, {"val/accuracy": 0.25}, time=9.0, group="g")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"fira"', '"freekd"'))
    (folder / "directions.png").write_bytes(b"drawn")
    done = here("report", str(root), "group=g", f"to={out}")
    assert done.returncode == 0, done.stderr
    page = (out / "report.md").read_text()
    fira, freekd = page.index("## fira"), page.index("## freekd")
    assert fira < freekd < page.index("| val/accuracy | 0.25 |")
    assert f"{np.mean(values_of(root, 'adamw', range(1, 5))):.6g} ± " in page[fira:freekd]
    (link,) = re.findall(r"<img src='([^']+)'", (out / "report.html").read_text())
    assert (out / unquote(link)).read_bytes() == b"drawn"
    assert f"- {folder}\n" in page
    assert "broken" not in page


def test_methods_that_share_a_figure_are_compared_where_it_is_named(root, here, tmp_path):
    folder = a_run(root, "other-method", 1, {"val/loss": 0.5}, group="g")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"fira"', '"kpod"'))
    done = here("report", str(root), "group=g", "metric=val/loss", f"to={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "## val/loss" in (tmp_path / "out" / "report.md").read_text()


def test_diff_names_what_two_runs_differ_in_and_nothing_else(root, here):
    done = here("report", "diff", str(root / "adamw-1"), str(root / "fira-1"))
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("optim.lr")] == [["optim.lr", "2.0", "1.7"]]
    assert "packages: the same" in done.stdout
    assert "logger.group" not in done.stdout


@pytest.mark.parametrize(("words", "message"), [
    (["ROOT", "group=x"], "report: no finished run in"),
    (["ROOT", "metric=val/los"], "metric: no run has val/los. Did you mean 'val/loss'?"),
    (["ROOT", "optim.lrr=1"], "optim.lrr: no run has such a key. Did you mean 'optim.lr'?"),
    (["/nowhere"], "report: /nowhere is no folder"),
    (["ROOT", "group=g", "group=h"], "group: written twice, and a run has only one; leave it out and name the folders of the runs"),
    (["ROOT", "group=g", "against=sgd"], "against: sgd names 0 contenders; there are: optim=adamw; optim=fira"),
    (["diff", "ROOT"], "report: diff needs two run folders"), (["diff", "ROOT", "ROOT"], "is no run folder"),
])
def test_bad_words_are_answered_in_one_line(words, message, root, here):
    done = here("report", *(word.replace("ROOT", str(root)) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_seeds_train_as_single_runs_do_and_an_interrupted_series_goes_on(fivefold_in, tmp_path, cache):
    words = ["train", "experiment=fira_debug", "logger=csv", f"data.cache={cache}", "trainer.threads=1", "trainer.max_steps=4",
             "trainer.val_every_n_steps=2", f"run.root={tmp_path}"]
    alone = fivefold_in(tmp_path, *words, "run.name=alone", "run.seed=6")
    assert alone.returncode == 0, alone.stderr
    series = fivefold_in(tmp_path, *words, "run.name=series", "run.seed=5", "run.seeds=2")
    assert series.returncode == 0, series.stderr
    results = [json.loads((tmp_path / name / "run.json").read_text())["results"] for name in ("series-s5", "series-s6", "alone")]
    assert results[1]["val/loss"] == results[2]["val/loss"] != results[0]["val/loss"]
    assert f"{np.mean([r['val/loss'] for r in results[:2]]):.6g}" in (tmp_path / "series" / "report.md").read_text()
    again = fivefold_in(tmp_path, *words, "run.name=series", "run.seed=5", "run.seeds=3")
    assert again.returncode == 0, again.stderr
    assert [len(json.loads((tmp_path / f"series-s{seed}" / "run.json").read_text())["started"]) for seed in (5, 6, 7)] == [1, 1, 1]
    assert "seed 5:" not in again.stdout
