"""What the C library does with memory that a training on a CPU frees: give it back, or keep it for the next step."""

import ctypes

from pipelines.config import ConfigError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep all that is freed, from now on, in this process.

    By default each tensor of some megabytes is mapped anew and given back at its end, and the kernel clears its pages every time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        raise ConfigError("trainer.keep_memory: needs the C library glibc, which this machine does not have; leave it out") from None
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
