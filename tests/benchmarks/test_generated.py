"""What is generated from the records: the page, its picture, the tables of pages written by hand."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from benchmarks import peers
from benchmarks.generated import BLOCKS, MARKED, PAGE, with_blocks
from benchmarks.page import PICTURES, explained, is_of_run, page
from benchmarks.plan import LONG_RUNS, PLAN
from benchmarks.plots import compile_time, compile_time_points, described, standalone
from benchmarks.results_file import LONG, RESULTS, ROOT, read_json, write_json
from benchmarks.tables import markdown_table, pairs_table

RECORDS = [*RESULTS.glob("*.json"), *LONG.glob("*.json")]


def test_the_committed_page_is_what_the_committed_records_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS), "python -m benchmarks --page"


@pytest.mark.parametrize("file", MARKED, ids=lambda file: file.name)
def test_the_committed_tables_are_what_the_committed_records_make(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert with_blocks(text, RESULTS) == text, "python -m benchmarks --readme"


def test_every_table_stands_in_one_file() -> None:
    found = [name for f in MARKED for name in re.findall(r"<!-- benchmarks: (\w+) -->", f.read_text("utf-8"))]
    assert sorted(found) == sorted(BLOCKS)


def test_the_committed_picture_shows_the_committed_record() -> None:
    file, label = PICTURES["compiler_speed"]
    text = (PAGE.parent / "images" / file).read_text(encoding="utf-8")
    points = compile_time_points(read_json(RESULTS / "compiler_speed.json"))
    drawn = re.search(r"<desc>(.*?)</desc>", text, re.DOTALL)
    assert drawn is not None
    assert unescape(drawn[1]) == described(points), "python -m benchmarks --page"
    assert f'aria-label="{label}"' in text


def test_every_record_is_of_a_benchmark_or_a_long_run() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= {*(b.name for b in PLAN), "run"}
    assert sorted(path.stem for path in LONG.glob("*.json")) == sorted(long.name for long in LONG_RUNS)


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_no_record_names_a_place_of_the_machine(file: Path) -> None:
    assert not re.search(r'(?:"| )/(?:work|home|tmp|root|usr)/', file.read_text(encoding="utf-8"))


def test_a_marker_of_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmarks: nothing -->: expected one of demo, peers"):
        with_blocks("<!-- benchmarks: nothing -->\n<!-- /benchmarks -->", tmp_path)


def test_text_around_a_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "demo", lambda results: f"of {results.name}")
    text = "a\n<!-- benchmarks: demo -->\n| old |\n<!-- /benchmarks -->\nb <!-- /benchmarks -->\n"
    made = with_blocks(text, tmp_path / "r")
    assert made == "a\n<!-- benchmarks: demo -->\nof r\n<!-- /benchmarks -->\nb <!-- /benchmarks -->\n"
    assert with_blocks(made, tmp_path / "r") == made


def test_a_printed_table_in_markdown() -> None:
    table = Table("name", title="two")
    table.add_column("a|b", justify="right")
    table.add_row("[bold]x[/bold]", "1")
    assert markdown_table(table) == "**two**\n\n| name | a\\|b |\n| --- | ---: |\n| x | 1 |"


def test_values_of_every_kind_are_shown() -> None:
    values = {"n": 20000, "r": 0.12345, "y": True, "d": {"a": 1}, "s": ["b", 2.0], "e": []}
    cells = list(pairs_table(values).columns[1].cells)
    assert cells == ["20,000", "0.123", "yes", "a: 1", "b, 2", "none"]


def test_a_docstring_as_markdown() -> None:
    docstring = (
        "What it is.\n\n    python benchmarks/x.py\n    pip install y\n\nSo ``it`` goes:\n\n"
        "one    the first,\n       continued\nothers  the rest\n\n    a = b  +  c\n"
    )
    assert explained(docstring) == (
        "What it is.\n\nSo `it` goes:\n\n- **one**: the first, continued\n- **others**: the rest\n\n"
        "    a = b  +  c"
    )


FACTS = {"started": "2026-01-02 03:04 UTC", "commit": "abc", "clean": True}
MACHINE = {"cores": 2, "threads": 1, "architecture": "x86_64", "python": "3.11", "torch": "2.13"}


def latency_record(ratio: float, run: dict[str, Any] | None) -> dict[str, Any]:
    seconds = {"median": 0.02, "lower": 0.01, "upper": 0.03}
    row = {"candidate": seconds, "reference": seconds, "ratio": ratio, "goal": 1.05, "met": ratio <= 1.05}
    comparisons = dict.fromkeys(("forward", "step", "gain"), row)
    record = {"machine": MACHINE, "model": "resnet50", "comparisons": comparisons}
    return record if run is None else record | {"run": run}


def make_results(folder: Path) -> Path:
    """A run with one record of its own, one of an earlier run, and one that was skipped."""
    entry = {"status": "done", "reason": "", "seconds": 90.0, "absent": []}
    skipped = entry | {"status": "skipped", "reason": "needs x (pip install x)", "seconds": 0.0}
    benchmarks = {"latency": entry, "minilm": skipped}
    run = FACTS | {"machine": MACHINE, "minutes": 1.5, "benchmarks": benchmarks}
    write_json(folder / "run.json", run)
    write_json(folder / "latency.json", latency_record(1.25, FACTS))
    steps = {"ratios": {"fxcompress": 1.5, "torchao": 1.2}, "goal": 1.4, "met": False, "torchao": ""}
    write_json(folder / "qat_step.json", {"machine": MACHINE, "subjects": {"digits": steps}})
    for long in LONG_RUNS:
        (folder / "long").mkdir(exist_ok=True)
        (folder / "long" / f"{long.name}.json").symlink_to(LONG / f"{long.name}.json")
    return folder


def test_the_page_says_when_and_what_is_not_of_this_run(tmp_path: Path) -> None:
    made = page(make_results(tmp_path))
    when, where = "2026-01-02 03:04 UTC, commit abc", "2 cores, 1 thread, x86_64, Python 3.11, torch 2.13"
    assert f"{when}, {where}: 2 minutes." in made
    assert "| latency | done | 1.5 | all |" in made
    assert "| minilm | skipped: needs x (pip install x) | 0.0 |  |" in made
    sections = dict(re.findall(r"^## ([\w ]+)\n(.*?)(?=^## |\Z)", made, re.MULTILINE | re.DOTALL))
    assert list(sections) == ["The run", "qat_step", "latency", "Long runs"]
    assert "Not of the last run" not in sections["latency"]
    spread = "20.0 (10.0-30.0)"
    assert f"| forward | {spread} | {spread} | 1.250 | <= 1.05 | MISSED |" in sections["latency"]
    assert "What masks cost in training" in sections["latency"]
    assert "Not of the last run" in sections["qat_step"]


def test_where_another_tool_is_better_the_table_says_so(tmp_path: Path) -> None:
    made = peers.peers_table(make_results(tmp_path))
    assert "| training step of ResNet-50 under masks | 20 ms | without masks 20 ms | 0.80 |" in made
    step = "quantization-aware training step, digits †"
    assert f"| {step} | 1.50× a float step | torchao 1.20× | 0.80 |" in made
    assert made.endswith("† not of the last run; ‡ of a long run, made apart")


def test_int8_stands_beside_the_better_of_the_two_quantizers() -> None:
    speedup = {
        "1": {"fxcompress": 3.0, "static": 1.0, "dynamic": 2.0},
        "8": {"fxcompress": 2.0, "static": 1.5, "dynamic": 4.0},
    }
    row = {
        "speedup": speedup,
        "sqnr": {"fxcompress": 30.4, "static": 20.0, "dynamic": 31.0},
        "parity": {"mismatches": 1, "values": 2_000_000},
    }
    first, second = peers.int8_rows({"rows": {"net": row}})
    assert first == peers.Row(
        "int8, net", "3.00× / 2.00×, 30 dB", "onnxruntime dynamic 2.00× / 4.00×, 31 dB", (1.5, 0.5)
    )
    assert second == peers.Row("values of their integer kernels that are not exact, of 2 million", "1")


def test_times_to_prune_are_the_least_the_median_and_the_greatest_ratio() -> None:
    rows = [
        {"model": f"m{ratio}", "nodes": 10, "parameters": 1, "capture": 0.0, "compile": 0.0, "speedup": 0.1,
         "full": 0.0, "torch_pruning": None if ratio is None else 0.1 * ratio}
        for ratio in (4.0, 0.5, None, 2.0, 30.0, 3.0)
    ]  # fmt: skip
    found = list(peers.compiler_rows({"rows": rows}))
    assert [row.measured for row in found] == [
        "time to prune m0.5 (least ratio of 5 models)",
        "time to prune m3.0 (median ratio of 5 models)",
        "time to prune m30.0 (greatest ratio of 5 models)",
    ]
    assert [round(row.times[0], 6) for row in found] == [0.5, 3.0, 30.0]
    assert found[2].other == "Torch-Pruning 3.00 s"


def test_a_picture_stands_alone_and_holds_its_points() -> None:
    points = {"fxcompress, chains": [(10.0, 0.1), (100.0, 1.0)], "Torch-Pruning, chains": [(10.0, 0.3)]}
    text = standalone(compile_time(points), "p", "a < b", points)
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert 'aria-label="a &lt; b"' in text
    assert "nodes of the graph" in text
    assert json.loads(unescape(text.split("<desc>")[1].split("</desc>")[0])) == json.loads(json.dumps(points))
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))


def test_a_record_is_of_the_run_that_began_when_it_says(tmp_path: Path) -> None:
    assert is_of_run({"run": FACTS}, FACTS)
    assert not is_of_run({"run": FACTS | {"started": "later"}}, FACTS)
    assert not is_of_run({}, FACTS)
    assert not is_of_run({"run": FACTS}, {})


def test_logs_are_not_committed() -> None:
    assert "/benchmarks/results/logs/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_torch_pruning_stands_beside_us_where_its_records_are() -> None:
    counts = {"runs": 40, "exact": 40, "exact, at least 40 % removed": 30, "trains": 38}
    other = {"runs": 20, "exact": 10, "exact, at least 40 % removed": 0, "trains": 19}
    summary = {"models": 41, "fxcompress": counts, "Torch-Pruning": other}
    rows = list(peers.zoo_peer_rows({"summary": summary}))
    assert rows[1] == peers.Row("of 41 public models are exact (1e-9)", "40", "Torch-Pruning 10", (4.0,))
    assert [row.times for row in rows] == [(2.0,), (4.0,), (), (2.0,)]
    ratios = {"fxcompress": {"ratio": 4.0}, "Torch-Pruning": {"ratio": 3.0}}
    failed = {"fxcompress": {"ratio": 4.0}, "Torch-Pruning": {"obstacle": "crash"}}
    found = list(peers.memory_rows({"compress": {"tv/a": ratios, "tv/b": failed}}))
    cells = "4.0× the model", "Torch-Pruning 3.0× the model"
    assert found == [peers.Row("peak memory of pruning a", *cells, (0.75,))]


def test_the_long_fuzz_run_broke_no_law_and_reached_every_rule() -> None:
    record = read_json(LONG / "fuzz.json")
    assert (record["failures"], record["ruled_operators_never_seen"]) == ([], [])
