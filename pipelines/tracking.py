"""Where metrics go: metrics.csv in the run folder always, W&B beside it."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from pipelines.schema import RunConfig


class MetricsFile(CSVLogger):
    """Lightning's CSV logger that writes FOLDER/metrics.csv and, unlike it, goes on with an existing file."""

    def __init__(self, folder: Path, keep_before: int = 0) -> None:
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
        self._keep_before = keep_before

    @property
    def experiment(self) -> Any:
        """The writer, made on first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _ContinuedWriter(self.log_dir, self._keep_before)
        return self._experiment


class _ContinuedWriter(ExperimentWriter):
    def __init__(self, log_dir: str, keep_before: int) -> None:
        self._keep_before = keep_before
        super().__init__(log_dir)
        self.metrics_keys = self._known

    def _check_log_dir_exists(self) -> None:
        """Keep the rows of steps before the checkpoint that the run resumes from; the later ones come again."""
        self._known: list[str] = []
        if not os.path.isfile(self.metrics_file_path):
            return
        with open(self.metrics_file_path, newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < self._keep_before]
            self._known = list(reader.fieldnames or [])
        whole = Path(self.metrics_file_path + ".part")
        with whole.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self._known)
            writer.writeheader()
            writer.writerows(rows)
        whole.replace(self.metrics_file_path)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write nothing: the run folder holds config.yaml."""


def wandb_mode(mode: str) -> str:
    """Turn `auto` into online when an API key is at hand and offline otherwise; never ask."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import wandb

    return "online" if wandb.Api and _netrc_has(wandb.Settings().base_url) else "offline"


def _netrc_has(url: str) -> bool:
    import netrc
    from urllib.parse import urlparse

    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and netrc.netrc(path).authenticators(urlparse(url).hostname or "") is not None
    except netrc.NetrcParseError:
        return False


def wandb_logger(config: RunConfig, folder: Path) -> WandbLogger:
    """Make the W&B logger of a run; a resumed run goes on under the id kept in its folder."""
    from pipelines.config import to_mapping

    kept = folder / "wandb-id"
    if not kept.exists():
        import wandb

        kept.write_text(wandb.util.generate_id())
    mode = wandb_mode(config.logger.mode)
    return WandbLogger(
        name=folder.name, save_dir=folder, id=kept.read_text().strip(), resume="allow", mode=mode,  # type: ignore[arg-type]
        project=config.logger.project, entity=config.logger.entity, group=config.logger.group, tags=list(config.run.tags),
        job_type=config.method, config=to_mapping(config), settings={"silent": True, "console": "off"},
    )
