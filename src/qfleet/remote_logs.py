"""Where else a run's numbers go, if asked: Weights & Biases and MLflow, each an extra of its own. Floor 6.

    logging.wandb = "project"            logging.mlflow = "http://127.0.0.1:5000", or "sqlite:///mlflow.db"

Which of their runs belongs to a run directory stands in its remote_logs.json, so that a resumed run goes on there.
metrics.jsonl stays the source of everything: a service that fails while a run goes on costs its copy, never the run.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from qfleet.errors import MissingExtraError, QfleetError, first_line
from qfleet.run_config import RunConfig
from qfleet.storage import write_file

NAMES_FILE = "remote_logs.json"
EXPERIMENT = "qfleet"
MAX_PARAMS = 100  # that MLflow takes at once


class RemoteLog(Protocol):
    """One of them.

    Attributes:
        name: for messages.
    """

    name: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, at an env step. Raises whatever it likes."""

    def close(self) -> None:
        """The run ends, or pauses."""


def open_remote_logs(config: RunConfig, run_dir: Path) -> list[RemoteLog]:
    """Those that the configuration asks for.

    Raises:
        MissingExtraError: a package is not installed.
        QfleetError: a service does not take the run.
    """
    logs: list[RemoteLog] = []
    try:
        if config.logging.wandb is not None:
            logs.append(WandbLog(config.logging.wandb, config, run_dir))
        if config.logging.mlflow is not None:
            logs.append(MlflowLog(config.logging.mlflow, config, run_dir))
    except QfleetError:
        raise
    except ImportError as error:
        package = "wandb" if config.logging.wandb is not None and not logs else "mlflow"
        raise MissingExtraError(
            f"logging.{package} needs {package}, which is not installed: pip install 'qfleet[{package}]'"
        ) from error
    except Exception as error:  # services' own errors have no common base
        which = "wandb" if config.logging.wandb is not None and not logs else "mlflow"
        raise QfleetError(f"logging.{which} = {getattr(config.logging, which)!r}: {first_line(error)}") from error
    return logs


class WandbLog:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run directory.

    Args:
        project: its project.
        config: the run's.
        run_dir: the run directory; names the run.
    """

    name = "wandb"

    def __init__(self, project: str, config: RunConfig, run_dir: Path) -> None:
        import wandb

        run_id = _known(run_dir).get(self.name) or uuid.uuid4().hex[:8]
        self._run: Any = wandb.init(
            project=project,
            id=run_id,
            resume="allow",
            name=run_dir.name,
            dir=str(run_dir),
            config=_values(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own step may not go back, which a resumed run's does.
        self._run.define_metric("num_env_steps")
        self._run.define_metric("*", step_metric="num_env_steps")
        _remember(run_dir, self.name, run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, at an env step."""
        self._run.log({"num_env_steps": step, **values})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlflowLog:
    """A run in the experiment "qfleet" of an MLflow server or store.

    Args:
        uri: its tracking URI.
        config: the run's.
        run_dir: the run directory; names the run.
    """

    name = "mlflow"

    def __init__(self, uri: str, config: RunConfig, run_dir: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric: Any = Metric
        self._client: Any = MlflowClient(tracking_uri=uri)
        known = _known(run_dir).get(self.name)
        if known is not None:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(EXPERIMENT)
        self._run_id = str(self._client.create_run(number, run_name=run_dir.name).info.run_id)
        params = [Param(name, str(value)) for name, value in _flat(_values(config)).items()]
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[begin : begin + MAX_PARAMS])
        _remember(run_dir, self.name, self._run_id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, at an env step."""
        now = int(1000 * time.time())
        finite = [self._metric(name, value, now, step) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._run_id, metrics=finite)

    def close(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._run_id, status="FINISHED")


def _values(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _known(run_dir: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads((run_dir / NAMES_FILE).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(run_dir: Path, name: str, run_id: str) -> None:
    write_file(run_dir, NAMES_FILE, json.dumps({**_known(run_dir), name: run_id}, indent=1).encode())
