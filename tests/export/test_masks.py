"""Mask files: written, read, read from other tools, and checked against a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ExportError, SpeedupError
from fxcompress.export.masks import check_masks, load_masks, save_masks


def model() -> nn.Module:
    return nn.ModuleDict(
        {"conv1": nn.Conv2d(3, 4, 3), "conv2": nn.Conv2d(4, 2, 1, bias=False), "fc": nn.Linear(2, 2)}
    )


def some_masks() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return {
        "conv1": {"weight": (torch.rand(4, 3, 3, 3) > 0.5).float(), "bias": (torch.rand(4) > 0.5).float()},
        "conv2": {"weight": torch.rand(2, 4, 1, 1) > 0.5},
    }


def same(a: Any, b: Any) -> bool:
    return bool(a.keys() == b.keys()) and all(
        a[k].keys() == b[k].keys() and all(torch.equal(a[k][p], b[k][p]) for p in a[k]) for k in a
    )


def test_masks_come_back_as_they_were(tmp_path: Path) -> None:
    save_masks(some_masks(), tmp_path / "masks")
    assert same(load_masks(tmp_path / "masks"), some_masks())
    assert os.listdir(tmp_path) == ["masks"]


def test_expanded_masks_are_written_in_full(tmp_path: Path) -> None:
    mask = torch.tensor([1.0, 0.0]).reshape(2, 1).expand(2, 5)
    save_masks({"": {"weight": mask, "bias": mask}}, tmp_path / "masks")
    assert torch.equal(load_masks(tmp_path / "masks")[""]["weight"], mask)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_read(zipped: bool, tmp_path: Path) -> None:
    masks: dict[str, Any] = some_masks()
    masks["fc"] = {"weight": torch.ones(2, 2), "bias": None}
    torch.save(masks, tmp_path / "masks.pth", _use_new_zipfile_serialization=zipped)
    assert same(load_masks(tmp_path / "masks.pth"), {**some_masks(), "fc": {"weight": torch.ones(2, 2)}})


class Bomb:
    """Runs code when unpickled without restriction."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": {"weight": Bomb()}}, tmp_path / "masks.pth")
    with pytest.raises(ExportError, match=r"is no mask file.*\n.*save_masks"):
        load_masks(tmp_path / "masks.pth")
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ExportError, match=r"neither a safetensors nor a torch.save file"):
        load_masks(tmp_path / "text")
    with pytest.raises(ExportError, match=r"No such file"):
        load_masks(tmp_path / "nothing")
    torch.save(model().state_dict(), tmp_path / "weights")
    with pytest.raises(
        ExportError, match=r"'conv1.weight' holds a Tensor.*file of weights rather than masks"
    ):
        load_masks(tmp_path / "weights")
    with pytest.raises(ExportError, match=r"expected a tensor of 0 and 1, got list"):
        save_masks({"a": {"weight": [1, 0]}}, tmp_path / "a")  # type: ignore[dict-item]


def test_an_interrupted_write_keeps_the_old_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_masks(some_masks(), tmp_path / "masks")

    def fail(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_masks({"x": {"weight": torch.ones(1)}}, tmp_path / "masks")
    assert same(load_masks(tmp_path / "masks"), some_masks())


def test_masks_are_expanded_and_take_the_dtype_of_their_parameter() -> None:
    masks = {"conv1": {"weight": torch.tensor([True, False, True, True]).reshape(4, 1, 1, 1)}}
    checked = check_masks(masks, model())["conv1"]["weight"]
    assert checked.shape == (4, 3, 3, 3)
    assert checked.dtype is torch.float32
    assert checked.sum() == 27 * 3


def test_every_problem_is_listed_at_once() -> None:
    masks = {
        "conv3": {"weight": torch.ones(1)},
        "conv1": {"weight": torch.ones(5, 3, 3, 3), "bias": torch.tensor([1, 0, float("nan"), 1])},
        "conv2": {"weight": torch.full((2, 4, 1, 1), 0.5), "bias": torch.ones(2)},
        "fc": {"weight": torch.ones(3, 1, 2, 2)},
    }
    with pytest.raises(SpeedupError) as error:
        check_masks(masks, model())
    text = str(error.value)
    assert "conv3: the model has no such layer; did you mean 'conv" in text
    assert "conv1.weight: expected shape (4, 3, 3, 3) or one that broadcasts to it, got (5, 3, 3, 3)" in text
    assert "conv1.bias: expected only 0 and 1, got 1 NaN" in text
    assert "conv2.weight: expected only 0 and 1, got 8 other values such as 0.5" in text
    assert "conv2.bias: Conv2d has no such parameter (it has: weight)" in text
    assert "fc.weight: expected shape (2, 2)" in text
    assert len(text.splitlines()) == 7


def test_no_masks_at_all_are_an_error() -> None:
    with pytest.raises(SpeedupError, match=r"no masks were given"):
        check_masks({}, model())
