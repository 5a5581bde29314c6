"""``python -m benchmarks``: every benchmark, one after another, then the page and the README made of them.

    python -m benchmarks                    all, in under an hour on two cores
    python -m benchmarks --only latency qat_step --out /tmp/figures
    python -m benchmarks --resume           what the last run did not finish
    python -m benchmarks --page --readme    no benchmark: only what is generated from the records

Exit status: 0, 1 where a benchmark failed or hung (named at the end; a missed goal is a result), 2 for a
wrong option, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.plan import PLAN
from benchmarks.results_file import RESULTS, ROOT
from benchmarks.runner import PATIENCE, Options, Run


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [benchmark.name for benchmark in PLAN]
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=text)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="what would run, and what is missing for it")
    parser.add_argument("--resume", action="store_true", help="skip what this run already finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the records")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="folder with zoo.py")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, metavar="TIMES",
        help=f"the planned minutes after which a benchmark counts as hung (default: {PATIENCE:g})",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="only generate docs/benchmarks.md anew")
    parser.add_argument("--readme", action="store_true", help="only generate the tables of the README anew")
    return parser.parse_args(arguments)


def listed(options: argparse.Namespace) -> Table:
    """The plan: minutes, samples, obstacles."""
    table = Table("benchmark", "minutes", "sample of the whole", "missing", box=None, pad_edge=False)
    chosen = [benchmark for benchmark in PLAN if benchmark.name in options.only]
    for b in chosen:
        missing = [*b.obstacles(options.zoo), *(f"beside it: {peer}" for peer in b.peers if peer.missing)]
        table.add_row(b.name, f"{b.minutes:g}", b.sample, ", ".join(missing))
    table.add_row("in all", f"{sum(b.minutes for b in chosen):g}", "", "")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, or generate."""
    options = parse_options(arguments)
    console = Console(highlight=False)
    if options.list:
        console.print(listed(options))
        return 0
    status = 0
    if not (options.page or options.readme):
        chosen = [benchmark for benchmark in PLAN if benchmark.name in options.only]
        given = Options(options.out, options.zoo, options.resume, options.patience)
        try:
            status = Run(chosen, given, console)()
        except ValueError as error:
            print(f"python -m benchmarks: {error}", file=sys.stderr)
            return 2
        if status == 130 or options.out.resolve() != RESULTS:
            return status
        options.page = options.readme = True

    from benchmarks import generated  # imports every benchmark, which takes seconds

    if options.page:
        generated.write_page()
    if options.readme:
        generated.write_blocks()
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its processes end with it
    sys.exit(main())
