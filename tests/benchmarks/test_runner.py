"""The runner of all benchmarks, on tiny ones: what is on record, what is told, what Ctrl-C leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import runner
from benchmarks.__main__ import main
from benchmarks.plan import PLAN, Benchmark, Need
from benchmarks.results_file import GOAL_MISSED, ROOT, read_json
from benchmarks.runner import Options, Run


def fake(name: str, behaviour: str = "ends", **facts: Any) -> Benchmark:
    return Benchmark(name, 1.0, (behaviour,), module="tests.benchmarks.fakes", **facts)


def run(out: Path, *plan: Benchmark, resume: bool = False, patience: float = 4.0) -> tuple[int, str]:
    """Exit status and what was printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=300)
    status = Run(plan, Options(out, out / "no_zoo", resume, patience), console)()
    return status, printed.getvalue()


def statuses(out: Path) -> dict[str, str]:
    return {name: entry["status"] for name, entry in read_json(out / "run.json")["benchmarks"].items()}


def is_alive(pid: int) -> bool:
    """Whether the process still runs; one that ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_failing_benchmark_is_named_and_the_others_run(tmp_path: Path) -> None:
    status, printed = run(tmp_path, fake("bad", "crashes"), fake("silent", "silent"), fake("good"))
    assert status == 1
    assert statuses(tmp_path) == {"bad": "failed", "silent": "failed", "good": "done"}
    assert "    RuntimeError: no such kernel" in printed
    ending = printed.splitlines()[-3:]
    assert ending[0] == "failed: bad: exit status 1, see logs/bad.log"
    assert ending[1] == "failed: silent: it wrote no record"
    assert "RuntimeError: no such kernel" in (tmp_path / "logs" / "bad.log").read_text()
    assert not (tmp_path / "bad.json").exists()
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()


def test_a_record_says_of_which_run_it_is(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert run(tmp_path, fake("one"))[0] == 0
    elapsed = time.monotonic() - begin
    facts = read_json(tmp_path / "run.json")
    record = read_json(tmp_path / "one.json")
    assert record["benchmark"] == "ends"
    entry = facts["benchmarks"]["one"]
    assert record["run"] == {
        "started": facts["started"], "commit": facts["commit"], "clean": facts["clean"],
        "seconds": entry["seconds"], "arguments": ["ends"],
    }  # fmt: skip
    assert 0 <= entry["seconds"] <= elapsed + 0.1  # in tenths
    assert facts["minutes"] == round(entry["seconds"] / 60, 1)
    assert not Path("litter").exists()
    assert not (ROOT / "litter").exists()


def test_a_missed_goal_is_a_result(tmp_path: Path) -> None:
    assert GOAL_MISSED == 3  # what the fake exits with
    status, printed = run(tmp_path, fake("slow_one", "misses"))
    assert status == 0
    assert statuses(tmp_path) == {"slow_one": "done, goal missed"}
    assert read_json(tmp_path / "slow_one.json")["benchmark"] == "misses"
    assert "done, goal missed: slow_one" in printed


def test_one_over_its_limit_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.json").write_text('{"benchmark": "of the last run"}')
    monkeypatch.setattr(runner, "SPARE", 3.0)
    started = time.monotonic()
    status, printed = run(tmp_path, fake("long", "hangs"), fake("good"), patience=0.0)
    assert time.monotonic() - started < 30
    assert status == 1
    assert statuses(tmp_path) == {"long": "over its time limit", "good": "done"}
    assert "over its time limit: long: not done after 0.1 min" in printed
    assert read_json(tmp_path / "long.json") == {"benchmark": "of the last run"}
    assert not is_alive(int((tmp_path / "logs" / "long.log").read_text()))


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    need = Need("no_such_package", "--no-deps no-such-package")
    status, printed = run(tmp_path, fake("a", needs=(need,)), fake("b", zoo=True), fake("c", peers=(need,)))
    assert status == 0
    assert statuses(tmp_path) == {"a": "skipped", "b": "skipped", "c": "done"}
    assert "skipped: a: needs no_such_package (pip install --no-deps no-such-package)" in printed
    assert "skipped: b: needs the zoo: a folder with zoo.py, given by --zoo" in printed
    assert "without no_such_package (pip install --no-deps no-such-package)" in printed
    assert read_json(tmp_path / "run.json")["benchmarks"]["c"]["absent"] == [str(need)]


def test_the_zoo_is_given_to_those_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "no_zoo").mkdir()
    (tmp_path / "no_zoo" / "zoo.py").touch()
    run(tmp_path, fake("with", zoo=True), fake("without"))
    assert [read_json(tmp_path / f"{name}.json")["zoo"] for name in ("with", "without")] == [True, False]


def test_resume_runs_what_is_not_finished(tmp_path: Path) -> None:
    run(tmp_path, fake("good"), fake("misses", "misses"), fake("bad", "crashes"))
    before = read_json(tmp_path / "run.json")
    status, printed = run(tmp_path, fake("good"), fake("misses"), fake("bad"), fake("new"), resume=True)
    assert status == 0
    assert "[1/2] bad" in printed
    assert "[2/2] new" in printed
    after = read_json(tmp_path / "run.json")
    assert statuses(tmp_path) == {
        "good": "done", "misses": "done, goal missed", "bad": "done", "new": "done",
    }  # fmt: skip
    assert after["started"] == before["started"]
    assert after["benchmarks"]["good"] == before["benchmarks"]["good"]


def test_without_resume_everything_runs_again(tmp_path: Path) -> None:
    run(tmp_path, fake("good"), fake("other"))
    assert "[1/1] good" in run(tmp_path, fake("good"))[1]
    assert statuses(tmp_path) == {"good": "done"}


def test_a_run_of_another_commit_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, fake("good"))
    monkeypatch.setattr(runner, "commit", lambda: "0ther")
    with pytest.raises(ValueError, match=r"run of commit .*, and this is 0ther.*start anew"):
        run(tmp_path, fake("good"), resume=True)


DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from benchmarks.plan import Benchmark
from benchmarks.runner import Options, Run

fakes = {"module": "tests.benchmarks.fakes"}
plan = [Benchmark(name, 1.0, (name,), **fakes) for name in ("ends", "hangs", "crashes")]
sys.exit(Run(plan, Options(Path(sys.argv[1]), Path("zoo")), Console())())
"""


def test_ctrl_c_leaves_whole_files_and_no_process(tmp_path: Path) -> None:
    (tmp_path / "hangs.json").write_text('{"benchmark": "of the last run"}')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    # A run in the background of a shell ignores the signal, and so would its children.
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    log = tmp_path / "logs" / "hangs.log"
    end = time.monotonic() + 90
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on from here" in printed
    assert statuses(tmp_path) == {"ends": "done", "hangs": "interrupted"}
    assert read_json(tmp_path / "hangs.json") == {"benchmark": "of the last run"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ends.json", "hangs.json", "run.json", "logs"}
    assert not is_alive(int(log.read_text()))


def test_the_plan_fits_the_hour_and_names_modules_with_a_table() -> None:
    assert sum(benchmark.minutes for benchmark in PLAN) < 60
    for benchmark in PLAN:
        source = (ROOT / f"{benchmark.runs.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert "markdown" in source
        assert f'"{benchmark.output}"' in source


def test_the_list_tells_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    need = Need("no_such_package", "no-such-package")
    plan = [replace(fake("first"), minutes=2.0, sample="a tenth"), fake("second", needs=(need,))]
    monkeypatch.setattr("benchmarks.__main__.PLAN", plan)
    assert main(["--list"]) == 0
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in printed]
    assert ["first", "2", "a tenth"] in rows
    assert ["second", "1", "no_such_package (pip install no-such-package)"] in rows
    assert ["in all", "3"] in rows


def test_the_command_ends_with_the_status_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.__main__.PLAN", [fake("bad", "crashes"), fake("good")])
    assert main(["--out", str(tmp_path)]) == 1
    assert main(["--out", str(tmp_path), "--only", "good"]) == 0
    assert json.loads((tmp_path / "good.json").read_text())["benchmark"] == "ends"
    monkeypatch.setattr(runner, "commit", lambda: "0ther")
    assert main(["--out", str(tmp_path), "--resume"]) == 2
    assert "start anew without --resume" in capsys.readouterr().err
