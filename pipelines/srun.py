"""The step that srun has started, as Lightning sees it."""

from lightning.pytorch.plugins.environments import SLURMEnvironment

from pipelines.slurm import first_node, port


class SrunStep(SLURMEnvironment):
    """Meet on the first node of the step, leave signals to Checkpoints, and check nothing: pipelines/slurm.py has.

    Lightning takes the first node of the job, on which a step need not have a process, and saves inside a signal handler, where it may
    wait for another process that is in the middle of a step.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @property
    def main_address(self) -> str:
        return first_node()

    @property
    def main_port(self) -> int:
        return port()

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept what `check_step` has accepted."""

    @staticmethod
    def _validate_srun_used() -> None:
        """Accept it: this is made under srun only."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accept tasks that are spread evenly without --ntasks-per-node."""
