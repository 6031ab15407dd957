"""A bar in a terminal, lines in a file, and our packages' reports in both."""

import logging
import re
import warnings
from types import SimpleNamespace

import pytest

from pipelines import progress
from pipelines.logs import set_up_logs
from pipelines.progress import LogLines, TerminalBar, progress_bar
from tests.pipelines.tiny import Line, Numbers, trainer


def fit(bar, capsys, **more):
    settings = {"max_steps": 6, "val_check_interval": 4, "check_val_every_n_epoch": None, "log_every_n_steps": 3}
    trainer(callbacks=[bar], enable_progress_bar=True, **{**settings, **more}).fit(Line(), datamodule=Numbers(4))
    return capsys.readouterr().out


def test_the_kind_of_bar_follows_from_where_the_output_goes(monkeypatch):
    assert type(progress_bar()) is LogLines
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert type(progress_bar()) is TerminalBar


def test_lines_come_at_the_first_and_last_step_and_every_few_between_and_at_validations(capsys):
    lines = fit(LogLines(), capsys).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/6", "step 3/6", "step 4", "step 6/6"]
    assert re.fullmatch(r"step 1/6  loss 0\.\d{4}", lines[0])
    assert re.fullmatch(r"step 4  val/loss \d+\.\d{4}", lines[2])


@pytest.mark.parametrize(("own", "unit"), [({}, "items"), ({"UNIT": "nodes"}, "nodes")])
def test_speed_is_told_in_the_unit_of_the_module(own, unit):
    running = SimpleNamespace(progress_bar_metrics={"train/loss": 0.5}, logged_metrics={"train/items_per_sec": 1234.4},
                              lightning_module=SimpleNamespace(**own))
    assert progress.figures(running) == f"loss 0.5000  1,234 {unit}/s"


def test_lines_count_optimizer_steps_where_batches_are_accumulated(capsys):
    lines = fit(LogLines(), capsys, accumulate_grad_batches=2, max_steps=-1, max_epochs=3, val_check_interval=100).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/6", "step 3/6", "step 6/6"]


def test_the_time_left_is_the_pace_so_far_times_the_steps_to_go(monkeypatch):
    bar = LogLines()
    bar._began, bar._total = (100.0, 20), 50
    monkeypatch.setattr(progress.time, "monotonic", lambda: 130.0)
    assert bar._left(30) == "  0:01:00 left"
    assert (bar._left(21), bar._left(50)) == ("", "")


def test_a_terminal_shows_one_bar_over_all_steps_and_keeps_each_validation(capsys):
    shown = fit(TerminalBar(), capsys)
    assert shown.count("training") == 1
    assert re.search(r"training .* 6/6 .*loss 0\.\d{4}", shown)
    assert re.search(r"^step 4  val/loss", shown, re.MULTILINE)


def test_a_bar_is_taken_down_when_training_fails(capsys):
    class Fails(Line):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    bar = TerminalBar()
    with pytest.raises(ArithmeticError):
        trainer(max_steps=2, callbacks=[bar], enable_progress_bar=True).fit(Fails(), datamodule=Numbers(4))
    assert bar.progress is None
    assert "training" in capsys.readouterr().out


def test_other_processes_than_the_first_stay_silent(capsys):
    for bar in (LogLines(), TerminalBar()):
        bar.disable()
        assert fit(bar, capsys) == ""


def test_reports_of_our_packages_reach_the_terminal_once_and_lightnings_advice_does_not(capsys):
    with warnings.catch_warnings():
        set_up_logs()
        set_up_logs()
        logging.getLogger("datamodules.anything").info("tokenized %d MB", 3)
        logging.getLogger("datamodules.anything").debug("hidden")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: False")
    assert capsys.readouterr().out == "tokenized 3 MB\n"


def test_of_several_processes_the_first_reports_and_all_warn(capsys, monkeypatch):
    with warnings.catch_warnings(), monkeypatch.context() as second:
        second.setenv("LOCAL_RANK", "1")
        set_up_logs()
        logging.getLogger("datamodules.anything").info("tokenized 3 MB")
        logging.getLogger("datamodules.anything").warning("a torn file")
    assert capsys.readouterr().out == "a torn file\n"
    with warnings.catch_warnings():
        set_up_logs()
        logging.getLogger("datamodules.anything").info("tokenized 3 MB")
    assert capsys.readouterr().out == "tokenized 3 MB\n"


def test_an_evaluation_tells_in_a_file_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "TELL_SECONDS", -1.0)
    trainer(callbacks=[LogLines()], enable_progress_bar=True, max_steps=1).validate(Line(), datamodule=Numbers(4), verbose=False)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"validating: batch {number}/{len(lines)}" for number in range(1, len(lines) + 1)] != []
