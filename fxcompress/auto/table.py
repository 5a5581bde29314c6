"""Results as they come: a table and a bar on a terminal, a line per trial elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fxcompress.auto.options import Options
from fxcompress.auto.result import Row, SearchResult

if TYPE_CHECKING:
    import optuna

SHOWN = 15
"""Trials shown on a terminal: the latest."""


class Show:
    """Tells on standard error how a search is going. A context manager."""

    def __init__(self, options: Options, study: optuna.Study) -> None:
        self.options, self.study = options, study
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self.console)
        self._bar = self._progress.add_task("trials", total=options.trials)
        self._live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self._told: set[int] = set()
        self._dense: dict[str, Any] = {}

    def __enter__(self) -> Show:
        self._told = {row.number for row in self._rows().trials if row.state != "running"}
        if self._told:
            self.say(f"going on: the study holds {len(self._told)} trials that have ended")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()

    def say(self, words: str) -> None:
        """A line above the table."""
        self.console.print(words, markup=False, soft_wrap=True)

    def dense(self, baseline: dict[str, Any]) -> None:
        """Tell the dense model's figures."""
        self._dense = baseline
        told = ", ".join(f"{amount:.4g} {kind}" for kind, amount in baseline["measured"].items())
        self.say(f"dense: metric {baseline['metric']:.4f}, {told}")

    def update(self) -> None:
        """Show what the study holds now."""
        found = self._rows()
        ended = [row for row in found.trials if row.state != "running"]
        if self._live is not None:
            done = sum(row.state != "interrupted" for row in ended)
            self._progress.update(self._bar, completed=done)
            self._live.update(Group(trial_table(found, last=SHOWN), self._progress))
            return
        best = {row.number for row in found.front}
        for row in ended:
            if row.number not in self._told:
                self._told.add(row.number)
                self.say(" ".join(["trial", *filter(None, cells(row, row.number in best))]))

    def _rows(self) -> SearchResult:
        return SearchResult.of(self.study, self.options, self._dense)


def trial_table(found: SearchResult, *, last: int | None = None) -> Table:
    """The trials, the latest ``last`` of them; best ones are marked."""
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "metric", "MACs", "parameters", "bytes", "latency", "", "algorithm"):
        table.add_column(column, justify="left" if column in ("", "algorithm") else "right")
    best = {row.number for row in found.front}
    for row in found.trials[-last:] if last else found.trials:
        number, metric, *rest, state, algorithm = cells(row, row.number in best)
        table.add_row(number, metric, *rest, state, escape(algorithm))
    return table


def cells(row: Row, best: bool) -> list[str]:
    """Number, metric, four shares of the dense model's costs, state, and what was tried."""
    shares = [
        f"{row.shares[k]:.1%}" if k in row.shares else "" for k in ("macs", "parameters", "size", "latency")
    ]
    state = row.state if row.state != "complete" else "best" if best else "" if row.fits else "above budget"
    tried = row.error or named(row)
    metric = "" if row.metric is None else f"{row.metric:.4f}"
    return [str(row.number), metric, *shares, state, tried[:100]]


def named(row: Row) -> str:
    """The algorithms of a trial."""
    chosen = [row.params.get(key) for key in ("algorithm", "pruner", "quantizer")]
    given = [str(name) for name in chosen if name not in (None, "none")]
    entries = [e.get("pruner", e.get("quantizer")) for e in row.config_list]
    return " + ".join(given or [str(e) for e in dict.fromkeys(entries) if e])
