"""Input that nobody would type on purpose gives a run or a one-line refusal, never a traceback."""

import random

import pytest

from pipelines.config import ConfigError, compose, to_yaml

RUN = ["method=fira", "trainer.max_steps=8"]
ODD = [
    *"={}[]:,#'\"%@`|>?-~.\\\n\t\x00 ", "..", "--", ": ", " #", "? ", "- ", "*a", "&a", "!t", "!!bool x", "<<", "null", "???", "${a}", "${",
    "", "\x1b[0m", "\u2028", "\ufeff", "ü", "\udcff", "9" * 5000, "1e999", "0x1", "a" * 300,
    "optim", "optim.lr", "method", "fira", "config", "_target_", "lightning_modules", "run.name",
]
KEYS = ["optim.lr", "optim.targets", "optim.schedule", "optim._target_", "module.lora", "run.name", "run.tags", "trainer.profiler",
        "optim", "data", "config"]


def refusal(words):
    """Return why `words` are refused; None if they make a run. Any other exception is a failure of the test."""
    try:
        compose(words)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::pipelines.config.ConfigWarning")
@pytest.mark.parametrize("seed", range(10))
def test_an_odd_word_is_taken_or_refused_in_one_line(seed):
    draw = random.Random(seed)
    refusals = []
    for _ in range(20):
        odd = "".join(draw.choices(ODD, k=draw.randint(1, 4)))
        word = draw.choice([odd, f"{draw.choice(KEYS)}={odd}", f"{odd}=1", f"optim.{odd}=1", f"optim.schedule={{{odd}: 1}}"])
        refusals.append(refusal([*RUN, word]))
    assert any(refusals)
    assert all(len(said.splitlines()) == 1 for said in refusals if said is not None)


@pytest.mark.filterwarnings("ignore::pipelines.config.ConfigWarning")
@pytest.mark.parametrize("seed", range(10))
def test_a_file_with_odd_changes_is_taken_or_refused_in_one_line(seed, tmp_path):
    draw = random.Random(seed)
    file = tmp_path / "odd.yaml"
    full = to_yaml(compose(RUN)).splitlines()
    refusals = []
    for _ in range(8):
        lines = list(full)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(lines))
            place = draw.randint(0, len(lines[at]))
            before, after = lines[at][:place], lines[at][place:]
            lines[at] = draw.choice([before + draw.choice(ODD) + after, before, draw.choice(lines), f"  {before}{after}"])
        file.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
        refusals.append(refusal([f"config={file}"]))
    assert any(refusals)
    assert all(len(said.splitlines()) == 1 for said in refusals if said is not None)
