"""DeepSpeed ZeRO on CPUs: the numbers of one process, one checkpoint for all stages, and bad gradients met together.

Given the same gradients, weights and state are the same bits as on one process. The gradients themselves are summed in another order,
and stage 3 computes them with DeepSpeed's own linear layer.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_modules.optim.zero import zero_layout

WORKER = Path(__file__).parent / "strategies" / "zero_worker.py"
ROUNDING = 1e-5  # largest difference of losses and weights; the weights move by 0.01 and more
BF16 = 7e-3  # 8 bits of mantissa in norms and residuals, too, where Lightning alone rounds only what is multiplied


def run_on(processes, folder, *checks):
    """Start the worker; return what rank 0 reports, by check and stage."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launch, str(WORKER), str(folder), *checks], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for report in reports:
        print(report)
    return {(report.pop("check"), report.pop("stage")): report for report in reports}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def on_two(folder):
    return run_on(2, folder, "save:2", "save:0", "compare", "bf16", "spoilt", "built", "float16:2", "float16:3")


@pytest.fixture(scope="module")
def on_three(folder, on_two):
    return run_on(3, folder, "save:3", "resume:stage2.ckpt:3", "resume:stage0.ckpt:2", "resume:stage3.ckpt:0", "resume:stage3.ckpt:3",
                  "evaluate:stage2.ckpt:2", "evaluate:stage2.ckpt:3")


def test_the_gradients_of_each_stage_and_wrapper_give_the_bits_that_they_give_on_one_process(on_two):
    compared = [report for report in on_two.values() if "bitwise" in report]
    assert {report["wrapper"] for report in compared} == {"BF16_Optimizer", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"}
    assert len(compared) == 14  # of checks and stages
    assert all(report["bitwise"] and report["rounds"] == 8 and report["moved"] > 0.01 for report in compared)


@pytest.mark.parametrize("stage", [1, 2])
def test_processes_that_see_the_same_batch_train_bit_for_bit_as_one(on_two, stage):
    report = on_two["same batch", stage]
    assert (report["loss"], report["weights"], report["state"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("check", "tolerance"), [
    ("accumulated, clipped", ROUNDING), ("cut windows, clipped", ROUNDING), ("bf16-mixed", BF16)])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_as_one_that_sees_the_whole_batch(on_two, check, tolerance, stage):
    report = on_two[check, stage]
    assert report["loss"] < tolerance
    assert report["weights"] < tolerance


@pytest.mark.parametrize(("check", "stage"), [("other order", 2), ("small groups", 3)])
def test_the_order_and_size_of_deepspeeds_groups_change_nothing(on_two, check, stage):
    assert on_two[check, stage]["weights"] < ROUNDING


@pytest.mark.parametrize("where", ["cpu_offload", "offload_optimizer", "swap_optimizer"])
def test_offloading_is_refused_with_the_reason(where):
    with pytest.raises(ValueError, match="offload keeps weights and gradients where the processes cannot exchange them"):
        zero_layout(SimpleNamespace(**{where: True}), [])


@pytest.mark.parametrize(("strategy", "precision"), [
    ("ddp", "32-true"), ("fsdp", "32-true"), (1, "32-true"), (1, "bf16-mixed"), (2, "32-true"), (3, "32-true")])
def test_a_nan_on_one_process_ends_the_run_on_all_with_the_same_words_that_name_the_parameter(on_two, strategy, precision):
    first, second = on_two[f"spoilt raise {precision}", strategy]["messages"]
    assert first == second
    assert first.startswith("the gradient of network.model.embed_tokens.weight is not finite")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_nan_on_one_process_makes_all_leave_out_that_step_alone(on_two, stage):
    assert on_two["spoilt skip 32-true", stage] == {"messages": ["", ""], "finite": True, "steps": 7}


@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name in ("fresh", "fresh, rounded") for stage in (1, 2, 3)]
                         + [("pretrained", 3), ("tied, rounded", 3)])
def test_a_run_begins_with_the_weights_of_one_process_unrounded_in_its_masters(on_two, name, stage):
    assert on_two[name, stage]["weights"] == 0


@pytest.mark.slow
def test_building_under_stage_3_never_takes_the_memory_of_the_whole(folder):
    report = run_on(2, folder, "large")["large", 3]
    assert report["weights"] == 0
    assert 0.45 < report["share"] < 0.75


@pytest.mark.parametrize("stage", [2, 3])
def test_the_search_for_the_loss_scale_goes_on_where_it_was_saved(on_two, stage):
    report = on_two["float16", stage]
    saved, whole, after = report["scales"]
    assert (report["weights"], report["state"]) == (0, 0)
    assert after == whole != saved
    assert 0 < report["steps"] < 8  # some were left out
    assert report["torch"] == saved["scale"]


@pytest.mark.parametrize("how", ["as saved", "as saved under bf16-mixed"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_of_other_processes_is_loaded_as_it_was_saved(on_three, how, stage):
    report = on_three[how, stage]
    assert (report["step"], report["weights"], report["state"]) == (5, 0.0, 0.0)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_goes_on_under_another_stage_and_number_of_processes_as_if_it_had_never_stopped(on_three, stage):
    report = on_three["went on", stage]
    assert report["step"] == 8
    assert report["weights"] < ROUNDING


def test_a_run_that_goes_on_under_the_same_stage_and_processes_is_the_same_bit_for_bit(on_three):
    report = on_three["went on alike", 3]
    assert (report["step"], report["weights"], report["state"]) == (8, 0.0, 0.0)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_is_evaluated_alike_before_and_after_training(on_three, stage):
    report = on_three["evaluated", stage]
    assert max(report["fresh"], report["after"]) < ROUNDING
