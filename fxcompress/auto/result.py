"""What comes out of a search: the best model with its config, the Pareto front, and all trials.

folder/best/small.pt2, small.onnx, config.json     the model, and the config list that made it
folder/trials.csv, trials.json, report.html        every trial
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.auto import artefact
from fxcompress.auto.jobs import write_json
from fxcompress.auto.limits import COSTS
from fxcompress.auto.options import Options
from fxcompress.errors import FxcompressError
from fxcompress.export.archive import load
from fxcompress.export.files import replacing
from fxcompress.graph.module import CompiledModule

if TYPE_CHECKING:
    import optuna

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""Optuna's states of trials that have begun."""


@dataclass(frozen=True)
class Row:
    """A trial. Costs: ``measured`` amounts and ``shares`` of the dense model's (``limits.COSTS``)."""

    number: int
    state: str
    """``complete``, ``pruned``, ``failed``, ``interrupted``, ``running``."""
    metric: float | None
    fits: bool
    """Whether it is within the budget."""
    measured: dict[str, float]
    shares: dict[str, float]
    params: dict[str, Any]
    config_list: list[dict[str, Any]]
    error: str | None
    traceback: str | None
    seconds: float | None
    folder: Path | None


@dataclass(frozen=True)
class SearchResult:
    """What comes out of a search.

    Attributes:
        trials: all, by number.
        front: those within the budget that no other surpasses in all objectives; with one objective the best.
        dense: the dense model's metric and costs.
    """

    trials: tuple[Row, ...]
    front: tuple[Row, ...]
    dense: dict[str, Any]
    options: Options

    @classmethod
    def of(cls, study: optuna.Study, options: Options, dense: dict[str, Any]) -> SearchResult:
        """What a study holds."""
        stored = study.get_trials(deepcopy=False)
        rows = tuple(_row(t) for t in stored if "surplus" not in t.user_attrs and t.state.name != "WAITING")
        return cls(rows, _front(rows, options), dense, options)

    @property
    def best(self) -> Row:
        """The best trial within the budget (by the metric, where there are several objectives).

        Raises:
            FxcompressError: if there is none, saying how far the search came.
        """
        if self.front:
            sign = 1 if self.options.direction == "maximize" else -1
            return max(self.front, key=lambda row: (sign * (row.metric or 0.0), -row.number))
        complete = [row for row in self.trials if row.state == "complete"]
        if not complete:
            error = next((row.error for row in self.trials if row.error), "no trial has ended")
            raise FxcompressError(f"none of {len(self.trials)} trials succeeded; the first said: {error}")
        limits = "; ".join(map(str, self.options.limits))
        near = min(complete, key=lambda row: max(limit.excess(asdict(row)) for limit in self.options.limits))
        left = ", ".join(f"{near.shares[limit.kind]:.1%} of {limit.kind}" for limit in self.options.limits)
        raise FxcompressError(
            f"no trial of {len(complete)} fits the budget ({limits}); trial {near.number} comes closest with "
            f"{left}; run more trials, prune more layers or raise the budget"
        )

    @property
    def config_list(self) -> list[dict[str, Any]]:
        """The config list of the best trial."""
        return self.best.config_list

    @property
    def model(self) -> CompiledModule:
        """The best trial's model, read from its file.

        Raises:
            FxcompressError: if the trial ran on another machine, with another folder.
        """
        return load(_files_of(self.best) / artefact.MODULE)

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON: the dense model, the trials, and the numbers of those in front."""
        dense = {key: self.dense.get(key) for key in ("metric", "measured")}
        rows = [_plain(row) for row in self.trials]
        return {"dense": dense, "trials": rows, "front": [row.number for row in self.front]}

    def export(self, folder: Path) -> None:
        """Write all trials as ``trials.csv`` and ``trials.json``, and the best one's files to ``best``."""
        facts = self.facts()
        rows: list[dict[str, Any]] = facts["trials"]
        write_json(folder / "trials.json", facts)
        params = list(dict.fromkeys(name for row in self.trials for name in row.params))
        columns = ["number", "state", "metric", "fits", *COSTS, "seconds", "error", *params]
        with replacing(folder / "trials.csv") as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            for row in rows:
                flat = {**row, **row["measured"], **row["params"]}
                writer.writerow({key: flat[key] for key in columns if flat.get(key) is not None})
        best = self.best if self.front else None
        if best is not None and best.folder is not None and (best.folder / artefact.MODULE).exists():
            (folder / "best").mkdir(exist_ok=True)
            for name in (artefact.MODULE, artefact.ONNX):
                with replacing(folder / "best" / name) as temporary:
                    shutil.copyfile(best.folder / name, temporary)
            write_json(folder / "best" / "config.json", best.config_list)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is as good as ``b`` everywhere and better somewhere (all minimized)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def _front(rows: Sequence[Row], options: Options) -> tuple[Row, ...]:
    sign = -1 if options.direction == "maximize" else 1
    points = {
        row.number: (sign * row.metric, *(row.measured[kind] for kind in options.objectives))
        for row in rows
        if row.state == "complete" and row.fits and row.metric is not None
    }
    first: dict[tuple[float, ...], int] = {}
    for number, point in points.items():
        first.setdefault(point, number)
    kept = {n for p, n in first.items() if not any(dominates(other, p) for other in points.values())}
    return tuple(row for row in rows if row.number in kept)


def _row(trial: optuna.trial.FrozenTrial) -> Row:
    known = trial.user_attrs
    state = "interrupted" if "interrupted" in known else STATES[trial.state.name]
    metric = known.get("metric")
    if metric is None and trial.intermediate_values:
        metric = trial.intermediate_values[max(trial.intermediate_values)]
    return Row(
        number=trial.number,
        state=state,
        metric=metric,
        fits=all(excess <= 0 for excess in trial.constraints.values()),
        measured=known.get("measured", {}),
        shares=known.get("shares", {}),
        params=trial.params,
        config_list=known.get("config_list", []),
        error=known.get("error"),
        traceback=known.get("traceback"),
        seconds=known.get("seconds"),
        folder=Path(known["folder"]) if "folder" in known else None,
    )


def _plain(row: Row) -> dict[str, Any]:
    return asdict(row) | {"folder": None if row.folder is None else row.folder.name}


def _files_of(row: Row) -> Path:
    if row.folder is None or not (row.folder / artefact.MODULE).exists():
        raise FxcompressError(
            f"trial {row.number}: its model is in {row.folder}, which is not on this machine; share the "
            "folder of the search between machines, or compile config_list again"
        )
    return row.folder
