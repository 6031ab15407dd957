"""Where a run is put: new folders, and what run.resume accepts and refuses."""

import pytest
import torch

from pipelines.config import ConfigError, compose
from pipelines.resume import differences, place_for, way_on, with_settings_of_run
from pipelines.runs import claim, end_record, start_record


@pytest.fixture
def run(tmp_path):
    """Make a run folder as an earlier process would have left it."""

    def make(name, *words, steps=(4,), status="interrupted"):
        config = compose(["experiment=fira_debug", f"run.root={tmp_path}", f"run.name={name}", *words])
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        start_record(config, folder, 0, [])
        for step in steps:
            torch.save({"global_step": step}, folder / "checkpoints" / f"step={step:08d}.ckpt")
        end_record(folder, status, {})
        return folder

    return make


def place(tmp_path, *words):
    return place_for(compose(["experiment=fira_debug", f"run.root={tmp_path}", *words]))


def test_a_new_run_gets_a_folder_of_its_own_named_after_experiment_optimizer_and_seed(tmp_path):
    found = place(tmp_path, "run.seed=7")
    assert found.folder.parent == tmp_path
    assert found.folder.name.startswith("fira_debug-fira-s7-")
    assert (found.checkpoint, found.step, found.folder.exists()) == (None, 0, False)


def test_the_default_root_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = []
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        folders.append(place_for(compose(["experiment=fira_debug"])).folder.parent)
    assert folders == [tmp_path / "home" / "fivefold-runs"] * 2


def test_a_run_that_was_killed_before_its_record_was_written_leaves_its_name_free(tmp_path):
    config = compose(["experiment=fira_debug", f"run.root={tmp_path}", "run.name=early", "run.resume=auto"])
    claim(tmp_path / "early").close()
    assert place_for(config).folder == tmp_path / "early"
    (tmp_path / "early" / "config.yaml.part").touch()
    assert place_for(config).folder == tmp_path / "early"
    (tmp_path / "early" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"run\.name: .*early exists already and holds no run to go on with; choose another name$"):
        place_for(config)


def test_a_taken_name_is_refused_but_not_one_whose_run_never_began(tmp_path, run):
    run("taken")
    run("empty", steps=(), status="failed")
    with pytest.raises(ConfigError, match=r"run\.name: .*taken exists already"):
        place(tmp_path, "run.name=taken")
    assert place(tmp_path, "run.name=empty").folder == tmp_path / "empty"


def test_auto_takes_the_newest_unfinished_run_of_the_same_settings(tmp_path, run):
    run("older")
    newer = run("newer", steps=(4, 8))
    run("other", "optim.lr=0.5")
    run("done", status="finished")
    found = place(tmp_path, "run.resume=auto")
    assert (found.folder, found.step, found.notes) == (newer, 8, ())


def test_auto_goes_on_with_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, run):
    killed = run("killed", steps=(), status="running")
    found = place(tmp_path, "run.resume=auto")
    assert (found.folder, found.checkpoint) == (killed, None)


def test_auto_starts_anew_and_says_so_when_only_other_settings_are_unfinished(tmp_path, run):
    other = run("other", "trainer.max_steps=20")
    found = place(tmp_path, "run.resume=auto")
    assert found.folder != other
    assert found.checkpoint is None
    assert "starting from step 0" in found.notes[0]
    assert "trainer.max_steps was 20, now 8" in found.notes[0]


def test_auto_with_a_name_means_that_run_or_a_new_one_of_that_name(tmp_path, run):
    assert "starting from step 0" in place(tmp_path, "run.resume=auto", "run.name=mine").notes[0]
    mine = run("mine")
    run("newer")
    assert place(tmp_path, "run.resume=auto", "run.name=mine").folder == mine


@pytest.mark.parametrize("resume", ["auto", "FOLDER", "FOLDER/checkpoints/last.ckpt"])
def test_changed_settings_are_refused_with_what_differs(tmp_path, run, resume):
    folder = run("mine", "optim.lr=0.02", "optim.rank=4")
    (folder / "checkpoints" / "last.ckpt").symlink_to("step=00000004.ckpt")
    with pytest.raises(ConfigError) as refused:
        place(tmp_path, f"run.resume={resume.replace('FOLDER', str(folder))}", "run.name=mine", "optim.rank=4")
    text = str(refused.value)
    assert "mine was made with other settings: optim.lr was 0.02, now 0.01. " in text
    assert f"fivefold train run.resume={folder}" in text
    assert "\n" not in text


def test_settings_that_leave_the_numbers_alone_may_change_and_the_length_is_reported(tmp_path, run):
    folder = run("mine")
    found = place(tmp_path, f"run.resume={folder}", "trainer.max_steps=20", "trainer.log_every_n_steps=3", "logger=wandb", "data.workers=1")
    assert (found.folder, found.step) == (folder, 4)
    assert found.notes == ("changed since this run began: data.workers was 0, now 1; trainer.max_steps was 8, now 20; "
                           "trainer.log_every_n_steps was 1, now 3",)


def test_a_finished_run_is_resumed_only_to_become_longer(tmp_path, run):
    folder = run("mine", steps=(4, 8), status="finished")
    for words in (["run.resume=auto", "run.name=mine"], [f"run.resume={folder}"], [f"run.resume={folder}", "trainer.log_every_n_steps=2"]):
        with pytest.raises(ConfigError, match=r"run\.resume: mine has finished, after 8 steps; give more trainer\.max_steps"):
            place(tmp_path, *words)
    with pytest.raises(ConfigError, match=r"trainer\.max_steps: mine has trained 8 steps already"):
        place(tmp_path, f"run.resume={folder}", "trainer.max_steps=6")
    assert place(tmp_path, f"run.resume={folder}", "trainer.max_steps=9").step == 8


def test_a_run_killed_after_its_last_checkpoint_can_still_be_finished(tmp_path, run):
    folder = run("mine", steps=(4, 8), status="running")
    assert place(tmp_path, "run.resume=auto").folder == folder


def test_an_older_checkpoint_goes_on_in_a_new_folder_so_that_no_later_one_is_mixed_in(tmp_path, run):
    folder = run("mine", steps=(4, 8))
    found = place(tmp_path, f"run.resume={folder}/checkpoints/step=00000004.ckpt")
    assert found.folder != folder
    assert found.step == 4
    assert "not the newest checkpoint of mine" in found.notes[0]


def test_a_checkpoint_outside_of_any_run_starts_a_new_folder(tmp_path, run):
    copied = tmp_path / "copied.ckpt"
    copied.write_bytes((run("mine") / "checkpoints" / "step=00000004.ckpt").read_bytes())
    found = place(tmp_path, f"run.resume={copied}", "optim.lr=0.5")
    assert found.step == 4
    assert found.folder.name.startswith("fira_debug-")


@pytest.mark.parametrize("resume", ["nowhere", "empty"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path, resume):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"run\.resume: .*; name a run folder, a \.ckpt file, or auto"):
        place(tmp_path, f"run.resume={tmp_path / resume}")


def test_run_resume_alone_stands_for_all_settings_of_that_run(tmp_path, run):
    folder = run("mine", "optim.lr=0.02", "trainer.max_steps=30")
    for path in (folder, folder / "checkpoints" / "step=00000004.ckpt"):
        config = compose(with_settings_of_run([f"run.resume={path}", "trainer.max_steps=40"]))
        assert (config.optim.config.lr, config.trainer.max_steps) == (0.02, 40)
        assert differences(config, folder)[-2:] == [f"run.resume was None, now {path}", "trainer.max_steps was 30, now 40"]
    named = ["experiment=fira_debug", f"run.resume={folder}"]
    assert with_settings_of_run(named) == named
    assert with_settings_of_run(["run.resume=auto"]) == ["run.resume=auto"]


def test_the_way_on_is_a_command_that_survives_the_shell(tmp_path, run):
    folder = run("it's mine", steps=(4, 8))
    assert way_on(folder).startswith("go on from step 8 with: fivefold train run.resume='")
    assert way_on(tmp_path) == ""


def test_an_evaluation_that_has_answers_is_no_free_folder_and_goes_on_with_other_batches(tmp_path):
    words = ["method=av_odyssey", f"run.root={tmp_path}", "run.name=asked"]
    config = compose(words, command="evaluate")
    folder = tmp_path / "asked"
    folder.mkdir()
    start_record(config, folder, 0, [], work="evaluate")
    (folder / "parts").mkdir()
    (folder / "parts" / "000.jsonl").touch()
    end_record(folder, "interrupted", {})
    assert place_for(config).folder == folder  # nothing was answered
    (folder / "parts" / "000.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"run\.name: .*asked exists already; choose another name, or run.resume=auto"):
        place_for(config)
    assert place_for(compose([*words, "run.resume=auto", "data.eval_batch_size=3"], command="evaluate")).folder == folder
    with pytest.raises(ConfigError, match=r"asked was begun with other settings: data.questions was 100, now 7. Leave them as"):
        place_for(compose([*words, "run.resume=auto", "data.questions=7"], command="evaluate"))
