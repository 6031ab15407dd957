"""fivefold report wandb=…: W&B's own client writes runs to a small server and reads them back, and the page is that of their folders."""

import socket
import time

import numpy as np
import pytest
import wandb
from scipy.stats import ttest_rel

from pipelines import tracked
from pipelines.config import compose
from pipelines.runs import end_record, start_record
from pipelines.tracked import as_run, tracked_runs
from pipelines.tracking import MetricsFile, close_wandb, wandb_logger
from tests.pipelines.small_wandb import Kept

STEPS = range(2, 12, 3)


def a_run(root, name, optim, seed, losses, status="finished", again_from=None):
    """Keep a run in a folder and in W&B as the launcher does; with `again_from`, it was cut off and has done its last steps twice."""
    folder = root / name
    folder.mkdir(parents=True)
    config = compose(["experiment=fira_debug", f"optim={optim}", "optim.lr=2.0", f"run.seed={seed}", f"run.name={name}", "logger=wandb",
                      "logger.mode=online", "logger.group=g", "logger.data=false", "logger.checkpoints=off"])
    for part in [range(len(losses))] if again_from is None else [range(len(losses) - 1), range(again_from, len(losses))]:
        start_record(config, folder, 0, ["fivefold"])
        kept, file = wandb_logger(config, folder), MetricsFile(folder)
        if part[0]:
            file.rewind(STEPS[part[0]])
        for number in part:
            figures = {"val/loss": losses[number] + (part[0] == 0 and again_from is not None), "val/perplexity": 2.0 ** number}
            for logger in (kept, file):
                logger.log_metrics(figures, STEPS[number])
                logger.save()
        last = part[-1] == len(losses) - 1 and status == "finished"
        results = {"step": 12, "val/loss": losses[-1], "val/perplexity": 8.0, "seconds": 1.5}
        close_wandb([kept], config, folder, results if last else None)
    end_record(folder, status, results)


def test_the_page_of_runs_in_wandb_is_that_of_their_folders(small_wandb, here, tmp_path):
    rng = np.random.default_rng(0)
    losses = {(optim, seed): base + rng.standard_normal(4) for seed in (1, 2) for optim, base in (("adamw", 3.0), ("fira", 2.0))}
    losses["fira", 2][2] = np.nan
    for (optim, seed), values in losses.items():
        a_run(tmp_path / "runs", f"{optim}-{seed}", optim, seed, values.tolist(), again_from=2 if (optim, seed) == ("adamw", 2) else None)
    a_run(tmp_path / "runs", "broken", "fira", 3, [0.0] * 4, status="failed")
    pages, pictures = [], []
    for source, to in ((str(tmp_path / "runs"), "local"), ("wandb=me/fivefold", "far")):
        done = here("report", source, "group=g", "optim.lr=2.0", f"to={tmp_path / to}")
        assert done.returncode == 0, done.stderr
        html = (tmp_path / to / "report.html").read_text()
        pages.append(((tmp_path / to / "report.md").read_text().partition("## Runs")[0], html.partition("<h2>Runs")[0],
                      done.stdout.partition("written:")[0]))
        pictures.append((tmp_path / to / "curves.png").read_bytes())
    assert pages[0] == pages[1]
    assert pictures[0] == pictures[1]
    ends = {optim: [losses[optim, seed][-1] for seed in (1, 2)] for optim in ("adamw", "fira")}
    assert f"| optim=adamw | 2 | {np.mean(ends['adamw']):.6g} |" in pages[1][0]
    assert f" | {ttest_rel(ends['fira'], ends['adamw']).pvalue:.3g} |" in pages[1][0]
    assert f"<a href='{small_wandb.url}/me/fivefold/runs/" in html


def test_runs_come_in_pages_and_those_that_fivefold_did_not_make_are_left_out(small_wandb, capsys):
    config = {"defaults": {"value": {"method": "fira", "optim": "fira"}}, "optim": {"value": {"lr": 1}}}
    for seed in range(120):
        small_wandb.runs[f"r{seed}"] = Kept("p", f"r{seed}", state="finished", summary={"val/loss": seed},
                                            config=config | {"run": {"value": {"seed": seed}}})
    small_wandb.runs["alien"] = Kept("p", "alien", state="finished", config={"lr": {"value": 1}})
    assert [run.results["val/loss"] for run in tracked_runs("p", None)] == list(range(120))
    assert "1 runs of p are left out" in capsys.readouterr().err


class Object:
    """W&B's object for a run, by its documentation."""

    config = {"defaults": {"method": "kpod"}, "run": {"seed": 3}, "optim": {"lr": 1}, "started": {"time": 5.0, "host": "node"}}
    summary_metrics = {"val/loss": "NaN", "val/accuracy": 1, "val/table": {"_type": "table-file"}, "train/loss": 2.0, "_step": 4, "step": 9,
                       "val/note": "text", "seconds": 2.5}
    url = "https://wandb.example.org/me/p/runs/x"
    created_at = "2026-01-01T00:00:00Z"

    def scan_history(self, keys, use_cache):
        rows = [(0, 3.0), (1, "Infinity"), (2, 7.0), (1, 5.0), (2, None)]
        return [dict(zip(keys, row)) for row in rows]


def test_of_what_wandb_keeps_of_a_run_only_figures_count_and_the_later_row_of_a_step():
    run = as_run(Object(), "me/p")
    assert (run.seed, run.method, run.place) == (3, "kpod", Object.url)
    assert run.settings == {"defaults.method": "kpod", "run.seed": 3, "optim.lr": 1}
    assert run.results.keys() == {"val/loss", "val/accuracy", "step", "seconds"}
    assert np.isnan(run.results["val/loss"])
    assert run.record["started"][0]["time"] == 5.0
    assert run.curve("val/loss") == ([1, 2, 3], [3.0, 5.0, 7.0])


@pytest.mark.parametrize(("word", "code", "message"), [
    ("wandb=me/nothing", 2, "wandb: there is no project me/nothing, or none that you may see"),
    ("wandb=you/p", 2, "wandb: there is no project you/p"),
    ("wandb=a/b/c", 2, "wandb: must be ENTITY/PROJECT, or PROJECT for one of your own, not 'a/b/c'"),
    ("wandb=", 2, "wandb: must be ENTITY/PROJECT"),
    ("wandb=me/p", 2, "report: no finished run in W&B's project me/p with {'logger.group': 'g'}"),
])
def test_a_project_without_such_runs_is_answered_in_one_line(small_wandb, here, word, code, message):
    small_wandb.runs["x"] = Kept("p", "x", state="finished", group="other")
    done = here("report", word, "group=g")
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert message in done.stderr


def test_who_is_not_logged_in_is_told_so_and_never_asked(logged_out, here):
    done = here("report", "wandb=me/p")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "wandb: W&B is not logged in; run wandb login, or name run folders instead" in done.stderr


@pytest.fixture
def deaf():
    """A port on which the system takes connections, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("refuses", [True, False])
def test_a_server_that_is_gone_or_silent_costs_one_line_and_seconds(logged_out, monkeypatch, here, deaf, refuses):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if refuses else deaf)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracked, "SECONDS", 1)
    wandb.teardown()
    began = time.monotonic()
    done = here("report", "wandb=me/p")
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert "does not give the runs of me/p" in done.stderr.splitlines()[-1]


def test_a_server_that_goes_away_while_curves_are_read_costs_one_line_and_seconds(small_wandb, monkeypatch):
    monkeypatch.setattr(tracked, "RETRIES", 1)
    config = {"defaults": {"value": {"method": "fira"}}, "run": {"value": {"seed": 1}}}
    rows = [{"_step": 0, "trainer/global_step": 5, "val/loss": 0.5}]
    small_wandb.runs["x"] = Kept("p", "x", state="finished", config=config, history=rows)
    (run,) = tracked_runs("me/p", None)
    assert run.curve("val/loss") == ([6], [0.5])
    small_wandb.close()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="does not give the runs of me/p"):
        run.curve("val/loss")
    assert time.monotonic() - began < 30
