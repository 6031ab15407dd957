"""Finished runs as W&B keeps them, read by its public API: to `fivefold report` they are what run folders are."""

import contextlib
import datetime
import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

from pipelines.errors import ConfigError
from pipelines.evidence import Curve, Run, flat
from pipelines.tracking import STARTED, logged_in

STEP = "trainer/global_step"  # under which Lightning logs, counted from 0
SECONDS = 30  # after which a question that the server does not answer is given up
RETRIES = 3


class Kept(Protocol):
    """What is read of W&B's own object for a run."""

    config: dict[str, Any]
    summary_metrics: dict[str, Any]
    url: str
    created_at: str  # in UTC

    def scan_history(self, keys: list[str], use_cache: bool) -> Iterable[dict[str, Any]]:
        """Yield the rows that have all keys, in the order in which they were logged."""


def tracked_runs(project: str, group: str | None) -> list[Run]:
    """Read the finished runs of a project, ENTITY/PROJECT or one of your own, all or those of a group.

    Raises ConfigError for a project that is not there, and ConnectionError for a server that does not answer.
    """
    import wandb

    parts = project.split("/")
    if len(parts) > 2 or not all(parts):
        raise ConfigError(f"wandb: must be ENTITY/PROJECT, or PROJECT for one of your own, not '{project}'")
    if not logged_in():
        raise ConfigError("wandb: W&B is not logged in; run wandb login, or name run folders instead")
    wandb.setup().settings.x_graphql_retry_max = RETRIES
    wished = {"state": "finished"} | ({"group": group} if group else {})
    with one_line(project):
        found = list(wandb.Api(timeout=SECONDS).runs(project, filters=wished, lazy=False))
    ours = [kept for kept in found if "defaults" in kept.config and "run" in kept.config]
    if len(ours) < len(found):
        print(f"warning: {len(found) - len(ours)} runs of {project} are left out: fivefold did not make them, or an older one that kept "
              "less there", file=sys.stderr)
    return [as_run(kept, project) for kept in ours]


def as_run(kept: Kept, project: str) -> Run:
    """Turn W&B's run into what its folder would give."""
    config = dict(kept.config)
    last: dict[str, Any] = config.pop(STARTED, {})
    created = datetime.datetime.fromisoformat(kept.created_at.removesuffix("Z")).replace(tzinfo=datetime.UTC).timestamp()
    summary = {name: number(value) for name, value in kept.summary_metrics.items()}
    results = {name: value for name, value in summary.items()
               if value is not None and (name in ("step", "seconds") or name.startswith(("val/", "test/")))}
    record = {"status": "finished", "seed": config["run"]["seed"], "method": config["defaults"]["method"], "results": results,
              "started": [{"time": created, **last}]}
    return Run(kept.url, flat(config), record, partial(course, kept, project))


def course(kept: Kept, project: str, metric: str) -> Curve:
    """Read the course of a metric; of a step that an interrupted run has done twice, the later row counts, as in its folder."""
    with one_line(project):
        rows = list(kept.scan_history(keys=[STEP, metric], use_cache=False))
    values = {int(row[STEP]) + 1: value for row in rows if (value := number(row[metric])) is not None}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def number(value: Any) -> float | None:
    """Return a figure; W&B keeps those that JSON has no word for as texts. None: no figure."""
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@contextlib.contextmanager
def one_line(project: str) -> Iterator[None]:
    """Turn what W&B's client raises into one line."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Could not find project"):
            raise
        raise ConfigError(f"wandb: there is no project {project}, or none that you may see; W&B's page of a run names both parts") from None
    except (wandb.errors.Error, WandbApiFailedError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(f"W&B at {wandb.setup().settings.base_url} does not give the runs of {project} ({reason})") from None
