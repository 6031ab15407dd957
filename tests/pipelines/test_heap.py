"""Memory that is kept between steps: the kernel is asked for pages once."""

import subprocess
import sys

STEPS = """
import resource, sys, torch
from pipelines.build import build
from pipelines.config import compose
build(compose(["experiment=fira_debug", "trainer.accelerator=cpu", *sys.argv[1:]]), None)
for _ in range(4):
    torch.ones(16, 2**20)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(32):
    torch.ones(16, 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
"""


def megabytes_asked_for(*words):
    done = subprocess.run([sys.executable, "-c", STEPS, *words], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_memory_that_is_kept_is_not_asked_for_again():
    assert megabytes_asked_for() > 32 * 60
    # Small allocations between the tensors may take the place of one, so that the heap grows a few times before it settles.
    assert megabytes_asked_for("trainer.keep_memory=true") < 8 * 60
