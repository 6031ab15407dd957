"""A dry run shows model, parameter groups and batch arithmetic, and writes nothing."""

import re

import pytest

from pipelines.preview import bytes_text


@pytest.fixture
def plan(here, debug, tmp_path):
    """Run a dry run and return its lines, whitespace collapsed."""

    def run(*words):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        keys = {word.partition("=")[0] for word in words}
        done = here(*[word for word in debug if word.partition("=")[0] not in keys], *words, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return [" ".join(line.split()) for line in done.stdout.splitlines()]

    return run


def test_parameters_are_listed_with_what_is_projected_and_what_that_saves(plan):
    lines = plan("optim.rank=8")
    row = next(line for line in lines if line.startswith("model.model.layers.*.mlp.down_proj.weight"))
    shown = re.fullmatch(r"\S+ projected, rank 8 2 64x176 ([\d.]+) kB ([\d.]+) kB", row)
    moments_and_basis = 2 * 4 * (2 * 176 * 8 + 64 * 8)  # of two matrices in float32
    assert float(shown.group(1)) == pytest.approx(moments_and_basis / 1000, rel=2e-3)  # and a few counters
    assert float(shown.group(2)) == pytest.approx(2 * 2 * 4 * 64 * 176 / 1000, rel=1e-4)
    assert next(line for line in lines if line.startswith("model.lm_head.weight")).startswith("model.lm_head.weight full rank 1 512x64")
    total = next(line for line in lines if line.startswith("optimizer state"))
    saved = float(re.search(r"([\d.]+) % saved", total).group(1))
    assert 40 < saved < 60
    assert any("AdamW's would be 1.33 MB: 0.0 % saved" in line for line in plan("optim=adamw"))


def test_the_model_is_summed_up_by_module(plan):
    lines = plan()
    whole = 2 * 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 176) + 5 * 64
    assert f"all FiraModule {whole:,} {whole:,}" in lines
    frozen = plan("module.lora.rank=4", "module.lora.targets=[q_proj]", "optim.targets=[lora]")
    factors = 2 * 2 * 4 * 64
    assert f"all FiraModule {whole + factors:,} {factors:,}" in frozen


def test_batches_steps_and_tokens_are_multiplied_out(plan):
    lines = plan("data.batch_size=6", "data.block_size=16", "trainer.accumulate_grad_batches=5", "trainer.max_steps=7")
    assert "batch: 6 sequences x 1 processes x 5 accumulated = 30 sequences an optimizer step" in lines
    assert "tokens: 30 x 16 = 480 a step x 7 steps = 3,360" in lines


def test_epochs_are_turned_into_steps(plan):
    lines = plan("trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.limit_train_batches=7", "trainer.accumulate_grad_batches=2")
    assert any("x 12 steps" in line for line in lines)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (65_540, "65.54 kB"), (12_345_678, "12.35 MB"),
                                             (5 * 10**15, "5000.00 TB")])
def test_bytes_are_written_in_the_unit_that_suits_them(count, text):
    assert bytes_text(count) == text
