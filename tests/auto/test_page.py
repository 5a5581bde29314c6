"""The page of a search: made of the report page's pieces, self-contained, escaped, and what it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxcompress
from fxcompress.auto import artefact
from fxcompress.auto.limits import COSTS, limits_of
from fxcompress.auto.page import page, write_pages
from fxcompress.auto.plots import TOLD
from fxcompress.auto.result import SearchResult
from fxcompress.page import PageData
from tests.auto.test_result import found, row
from tests.page.browser import WIDTHS, chromium, measured
from tests.page.example import Net, pruned
from tests.page.test_page import BAD, parsed, sections

CURVES = {"stem": {0.0: 0.95, 0.5: 0.9}, BAD: {0.0: 0.95}}
TRIALS = [
    row(0, 0.9, 0.5, params={"pruner": "l1", "sparsity/stem": 0.123456}, config_list=[{"pruner": BAD}]),
    row(1, 0.8, 0.3),
    row(2, 0.99, 0.9, fits=False),
    row(3, None, 0.0, state="failed", error=BAD, traceback=f"Traceback: {BAD}"),
]


def result(**options: object) -> SearchResult:
    return found(TRIALS, **{"limits": limits_of({"macs": 0.6}), **options})


def words(text: str) -> str:
    return " ".join(parsed(text).text.split())


def test_it_has_figures_trials_curves_and_failures() -> None:
    text = page(result(objectives=("macs", "size")), CURVES, "best/report.html")
    assert sections(text) == ["totals", "charts", "sensitivity", "trials"]
    assert parsed(text).tags.count("svg") == 1 + 2 + 1
    told = words(text)
    for expected in (
        "4 trials, budget: macs ≤ 0.6 of the dense model's",
        "The dense model and the best, trial 0 dense best change metric 0.95 0.9 -0.05",
        "MACs per example 100 50 -50.0%",
        "stem 0.95 0.9",
        "0 0.9000 50.0% 1.0% 1.0% 1.0% best l1",
        "2 0.9900 90.0% 1.0% 1.0% 1.0% above budget",
        "trial pruner sparsity/stem p 0 l1 0.1235",
        "Traceback of trial 3",
    ):
        assert expected in told
    assert 'href="best/report.html"' in text


def test_latencies_of_the_dense_model_are_those_measured_beside_the_best() -> None:
    best = row(0, 0.9, 0.5, measured={"macs": 50.0, "latency": 0.003}, shares={"latency": 0.25})
    told = words(page(found([best]), {}))
    assert "latency in onnxruntime 12 ms 3 ms -75.0%" in told


def test_it_is_escaped_and_loads_nothing() -> None:
    text = page(result(name=BAD), CURVES)
    seen = parsed(text)
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert seen.text.count(BAD) >= 5
    links = {value for name, value in seen.attributes if name in ("src", "href") and value}
    assert {value for value in links if not value.startswith("#")} == {"trials.json", "trials.csv"}


def test_without_a_trial_that_fits_it_says_so() -> None:
    text = page(found([TRIALS[2]]), {})
    assert sections(text) == ["totals", "charts", "trials"]
    assert "No trial fits the budget" in words(text)
    assert sections(page(found([TRIALS[3]]), {})) == ["totals", "trials"]


def test_every_cost_has_a_name() -> None:
    assert TOLD.keys() == COSTS.keys()


def test_the_best_model_has_a_page_of_its_own(tmp_path: Path) -> None:
    _, small = pruned()
    dense = fxcompress.capture(Net().eval(), torch.randn(2, 3, 8, 8))
    trial = tmp_path / "trials" / "0"
    for module, folder in ((dense, tmp_path / "dense"), (small, trial)):
        folder.mkdir(parents=True)
        fxcompress.save(module.eval(), folder / artefact.MODULE)
    (tmp_path / "dense" / artefact.SENSITIVITY).write_text("layer,0.0,0.5\nstem,0.95,0.9\n")
    (tmp_path / "best").mkdir()
    write_pages(found([row(0, 0.9, 0.5, folder=trial)]), tmp_path)
    data = PageData.from_json((tmp_path / "best" / "report.json").read_bytes())
    totals = {total.name: (total.before, total.after) for total in data.totals}
    assert (totals["metric"], totals["parameters"]) == ((0.95, 0.9), (1444, 856))
    assert data.sensitivity == {"stem": {0.0: 0.95, 0.5: 0.9}}
    assert data.graph is not None
    assert data.graph.before == data.graph.after
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sections(text) == ["totals", "charts", "sensitivity", "trials"]
    assert 'href="best/report.html"' in text


def test_a_best_model_of_another_machine_has_none(tmp_path: Path) -> None:
    write_pages(found([row(0, 0.9, 0.5, folder=tmp_path / "elsewhere")]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "best/report.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(chromium() is None, reason="no Chromium or Chrome on the PATH")
def test_in_a_browser_it_is_as_wide_as_its_window() -> None:
    for width, seen in zip(WIDTHS, measured(page(result(), CURVES)), strict=True):
        assert seen["width"] == seen["scrolls"] == width
        assert seen["outside"] == []
        assert seen["loaded"] == []
        assert min(seen["pictures"]) > 300
