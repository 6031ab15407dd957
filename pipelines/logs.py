"""What of the packages' own talk reaches the user: ours does, Lightning's advice does not."""

import logging
import sys
import warnings
from typing import Any

from pipelines.processes import rank

OURS = ("pipelines", "lightning_modules", "datamodules")
ADVICE = {  # lowest level still shown of loggers that talk without need
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "bitsandbytes": logging.ERROR,
}
NEEDLESS = (  # warnings that ask for nothing a user of this launcher could or should do
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r"Found \d+ module\(s\) in eval mode",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # a method sums its figures over processes itself
    r"The `srun` command is available on your system",  # a job whose processes srun should have started is refused before
    r"`torch\.distributed\.\w+` is deprecated",  # said of what DeepSpeed calls
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


class _ToStdout(logging.StreamHandler):
    """Write to whatever sys.stdout is now: a progress bar replaces it while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stdout


_handler = _ToStdout()


def set_up_logs() -> None:
    """Print the progress reports of our packages, once for all processes, and keep advice and needless warnings from the terminal."""
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if rank() == 0 else logging.WARNING)
        logger.addHandler(_handler)  # adding it again changes nothing
    for name, level in ADVICE.items():
        logging.getLogger(name).setLevel(level)
    for message in NEEDLESS:
        warnings.filterwarnings("ignore", message)
