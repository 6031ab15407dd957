"""trainer=profile: a table that counts what a step does, and a trace that other tools read."""

import json

from pipelines.profile import PHASES, SKIP, STEPS, StepProfile, operations
from tests.pipelines.tiny import Line, Numbers, trainer


def profiled(tmp_path, steps):
    watch = StepProfile(tmp_path)
    trainer(max_steps=steps, limit_val_batches=0, callbacks=[watch]).fit(Line(), datamodule=Numbers(20))
    return watch


def cells(tmp_path):
    """Read the rows of both tables: first column -> the others."""
    lines = (tmp_path / "profile" / "table-0.txt").read_text().splitlines()
    return {line.split("  ")[0].strip(): line[len(line.split("  ")[0]) :].split() for line in lines if line.strip()}


def test_the_table_counts_what_one_step_of_a_linear_layer_does(tmp_path, capsys):
    profiled(tmp_path, SKIP + STEPS + 2)
    found = cells(tmp_path)
    assert [name for name in found if name in PHASES] == [*PHASES]
    assert all(float(found[phase][0]) > 0 for phase in PHASES)
    assert found["aten::addmm"][0] == "1"  # the layer's forward pass, a batch
    printed = capsys.readouterr().out
    assert "aten::addmm" in printed
    assert f"profile: {tmp_path}/profile/table-0.txt" in printed


def test_the_trace_holds_the_phases_of_the_measured_batches_alone_in_their_order(tmp_path):
    watch = profiled(tmp_path, SKIP + STEPS + 2)
    events = json.loads((tmp_path / "profile" / "trace-0.json").read_text())["traceEvents"]
    phases = sorted((e["ts"], e["name"]) for e in events if e.get("name") in PHASES and e.get("cat") == "user_annotation")
    assert [name for _, name in phases] == [*PHASES] * STEPS
    assert watch.measured == STEPS


def test_a_run_that_ends_earlier_writes_what_it_has_and_one_without_a_measured_batch_nothing(tmp_path):
    assert profiled(tmp_path / "short", SKIP + 2).measured == 2
    assert (tmp_path / "short" / "profile" / "trace-0.json").is_file()
    profiled(tmp_path / "none", SKIP)
    assert not (tmp_path / "none").exists()


class Event:
    def __init__(self, key, count, cpu, device=0, memory=0):
        self.key, self.count, self.self_cpu_time_total, self.self_device_time_total = key, count, cpu, device
        self.self_cpu_memory_usage, self.self_device_memory_usage = memory, 10 * memory


def test_operations_are_ordered_by_the_time_of_the_device_that_does_the_work():
    events = [Event("a", 1, 5.0, memory=3), Event("b", 2, 9.0), Event("forward", 1, 100.0)]
    assert operations(events) == [("b", 2, 9.0, 0), ("a", 1, 5.0, 3)]
    events.append(Event("kernel", 4, 0.0, device=7))
    assert operations(events)[0] == ("kernel", 4, 7.0, 0)
    assert ("a", 1, 0.0, 30) in operations(events)


def test_the_profile_trainer_leaves_both_in_the_run_folder(here, debug, tmp_path):
    words = [word for word in debug if not word.startswith(("trainer.max_steps", "trainer.val", "trainer.log"))]
    done = here(*words, "trainer=profile", "trainer.max_steps=10", "run.name=run", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "run" / "profile").iterdir()} == {"table-0.txt", "trace-0.json"}
    assert "optimizer and logging" in done.stdout
