"""The laws of design.md as functions over one random network and one way to prune it.

`check(subject)` runs them all and raises `LawFailure`, whose text is a pasteable file. Everything is float64
unless said otherwise; errors are relative to the largest magnitude of the expected output. The oracle is the
original eager model, with the masked weights multiplied in.

Ill-conditioned networks, whose own output moves more than `AMPLIFICATION` times as much as a relative
change of 1e-12 in their parameters and inputs (near-ties of a comparison, vanishing variances), prove
nothing about a compiler and are set aside (`Unsuited`); the fuzz runner counts them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

import fxcompress
from fxcompress.passes import compact
from tests.comparing import (
    ContiguousNoise,
    Inputs,
    amplification,
    call,
    count_flops,
    count_parameters,
    map_floats,
    relative_error,
    require_close,
    run,
)
from tests.generator import Network, Pruning
from tests.generator.masks import make_masks
from tests.generator.pruning import prunable
from tests.generator.script import script

EXACT = 1e-9  # float64, relative to the output's largest magnitude
SINGLE = 1e-4  # float32, likewise
AMPLIFICATION = 2000.0
SINGLE_AMPLIFICATION = 50.0  # conditioning above which float32 itself is not good to 1e-4
ONE_TO_ONE = frozenset(
    ("conv", "pointwise_conv", "batch_norm", "activation", "function", "prelu", "activation_in_place")
    + ("method_in_place", "sequential", "max_pool", "avg_pool", "adaptive_pool", "dropout", "pad")
)  # kinds that keep channels apart and uncoupled: a layer's prunable units are its filters


class Unsuited(Exception):
    """The example proves nothing (ill-conditioned, no gradient in the original either)."""


class LawFailure(AssertionError):
    """A law does not hold; the message is a pasteable file whose first lines say what is wrong."""

    def __init__(self, subject: Subject, law: str, cause: BaseException) -> None:
        self.law = law
        self.cause = cause
        kind = "" if isinstance(cause, AssertionError) else f"{type(cause).__name__}: "
        self.summary = f"{law}: {kind}{cause}"
        single = law == law_exact_single.__name__
        super().__init__(script(subject.network, subject.pruning, self.summary, single=single))


@dataclass(frozen=True)
class Subject:
    """A network and a pruning, with everything the laws make of them made once."""

    network: Network
    pruning: Pruning

    @cached_property
    def model(self) -> nn.Module:
        return self.network.model()

    @cached_property
    def inputs(self) -> Inputs:
        return self.network.inputs()

    @cached_property
    def captured(self) -> fx.GraphModule:
        return fxcompress.capture(self.model, self.inputs)

    @cached_property
    def compiled(self) -> fx.GraphModule:
        """The masked module (for external masks, the captured module with nothing inserted)."""
        if not self.pruning.config:
            return self.captured
        aware = self.pruning.dependency_aware
        return fxcompress.compile(self.captured, self.pruning.config, dependency_aware=aware)

    @cached_property
    def masks(self) -> dict[str, dict[str, Tensor]]:
        """Masks by layer: the external ones, or those in the compiled module's buffers."""
        if self.pruning.masks:
            return make_masks(self.model, self.pruning.masks)
        found: dict[str, dict[str, Tensor]] = {}
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, buffer in self.compiled.named_buffers(remove_duplicate=False):
            layer, _, attribute = name.removesuffix("_mask").rpartition(".")
            if name.endswith("_mask") and name.removesuffix("_mask") in parameters:
                found.setdefault(layer, {})[attribute] = buffer.detach()
        return found

    @cached_property
    def masked(self) -> nn.Module:
        """The eager model with the masks multiplied into its layers' parameters."""
        return apply_masks(self.model, self.masks)

    @cached_property
    def reference(self) -> nn.Module:
        """What `small` must equal: the compiled module, or the masked eager model for external masks."""
        return self.masked if self.pruning.masks else self.compiled

    @cached_property
    def small(self) -> fx.GraphModule:
        if self.pruning.masks:
            return fxcompress.speedup(self.captured, masks=self.masks)
        return fxcompress.speedup(self.compiled, self.inputs)

    @cached_property
    def compacted(self) -> fx.GraphModule:
        """`small` as it is where gathers and scatters cost nothing, so that layers are compacted at all."""
        costs, compact.COSTS = compact.COSTS, compact.Costs(0.0, 0.0, 0.0)
        try:
            masks = self.masks if self.pruning.masks else None
            return fxcompress.speedup(self.captured if masks else self.compiled, self.inputs, masks=masks)
        finally:
            compact.COSTS = costs

    @property
    def masks_layers_only(self) -> bool:
        """Whether the oracle, masked parameters, says it all: no computed weight has a mask of its own."""
        names = dict(self.compiled.named_buffers())
        return not any(name.startswith("_activation_mask") for name in names)

    @property
    def prunes(self) -> bool:
        return bool(self.pruning.config or self.pruning.masks)


def apply_masks(model: nn.Module, masks: dict[str, dict[str, Tensor]]) -> nn.Module:
    """A deep copy of `model` with masked parameters; a tied parameter is masked wherever it is read."""
    twin = copy.deepcopy(model)
    for name, tensors in masks.items():
        layer = twin.get_submodule(name)
        for attribute, mask in tensors.items():
            with torch.no_grad():
                layer.get_parameter(attribute).mul_(mask)
    return twin


# -- the laws --------------------------------------------------------------------------------------------


def law_capture(subject: Subject) -> None:
    """Capture equals eager in eval mode at several batch sizes; state-dict keys and the model stay."""
    names = list(subject.model.state_dict())
    captured = subject.captured
    for batch in (3, 2, 5):
        inputs = subject.network.inputs(batch=batch)
        require_close(f"capture, batch {batch}", run(captured, inputs), run(subject.model, inputs), EXACT)
    assert list(subject.model.state_dict()) == names, "capture changed the model's state dict"
    assert list(captured.state_dict()) == names, f"state dict {list(captured.state_dict())}, expected {names}"
    shared = {id(p) for p in subject.model.parameters()}
    assert all(id(p) in shared for p in captured.parameters()), "capture copied a parameter"


def law_train_mode(subject: Subject) -> None:
    """In train mode, from the same random state, capture equals eager, and so do the updated statistics."""
    if "functional randomness" in subject.network.flags:
        return
    eager, captured = copy.deepcopy(subject.model).train(), copy.deepcopy(subject.captured).train()
    with ContiguousNoise():
        try:
            torch.manual_seed(0)
            expected = call(eager, subject.inputs)
        except ValueError:  # BatchNorm refuses one value per channel in train mode
            return
        torch.manual_seed(0)
        require_close("train mode", call(captured, subject.inputs), expected, EXACT)
    trained = dict(captured.named_buffers())
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(trained[name], buffer, rtol=EXACT, atol=EXACT, msg=f"{name} after a step")
    assert relative_error(run(captured, subject.inputs), run(eager, subject.inputs)) <= EXACT, (
        "eval after train"
    )


def law_masks(subject: Subject) -> None:
    """A compiled module with masks on single layers is the original model with those weights masked.

    Skipped for dependency-aware masks, where a normalization over channels counts the kept channels only, and
    where a mask is on a weight that the model computes.
    """
    if not subject.pruning.config or subject.pruning.dependency_aware or not subject.masks_layers_only:
        return
    for batch in (3, 2):
        inputs = subject.network.inputs(batch=batch)
        require_close(
            "compiled against masked eager", run(subject.compiled, inputs), run(subject.masked, inputs), EXACT
        )
    keys = {name for name in subject.compiled.state_dict() if not name.endswith("_mask")}
    assert keys == set(subject.model.state_dict()), (
        f"state dict keys {keys ^ set(subject.model.state_dict())} differ"
    )


def law_exact(subject: Subject) -> None:
    """Law 1 in float64: the small module equals the masked one, at other batch sizes and resolutions."""
    for batch in (3, 2, 5):
        inputs = subject.network.inputs(batch=batch, seed=batch)
        require_close(
            f"speedup, batch {batch}", run(subject.small, inputs), run(subject.reference, inputs), EXACT
        )
    if "fixed size" in subject.network.flags:
        return
    inputs = subject.network.inputs(grow=2)
    try:
        # Only the batch is dynamic by contract: another resolution counts where the masked module takes it.
        same = relative_error(run(subject.captured, inputs), run(subject.model, inputs)) <= EXACT
        expected = run(subject.reference, inputs)
    except (RuntimeError, ValueError, AssertionError):
        return
    if same:
        require_close("speedup, other resolution", run(subject.small, inputs), expected, EXACT)


def law_compaction(subject: Subject) -> None:
    """Law 1 where every layer is compacted that can be; checked for every fourth network."""
    if subject.network.seed % 4 != 2:
        return
    for batch in (3, 2):
        inputs = subject.network.inputs(batch=batch, seed=batch)
        require_close(
            f"compacted, batch {batch}", run(subject.compacted, inputs), run(subject.reference, inputs), EXACT
        )


def law_exact_single(subject: Subject) -> None:
    """Law 1 in float32, on a model that was float32 all along; checked for every eighth network."""
    if subject.network.seed % 8 or amplification(subject.model, subject.inputs) > SINGLE_AMPLIFICATION:
        return
    model, inputs = copy.deepcopy(subject.model).float(), map_floats(Tensor.float, subject.inputs)
    if subject.pruning.masks:
        masks = {name: {k: m.float() for k, m in tensors.items()} for name, tensors in subject.masks.items()}
        reference, small = apply_masks(model, masks), fxcompress.speedup(model, inputs, masks=masks)
    else:
        aware = subject.pruning.dependency_aware
        reference = fxcompress.compile(model, subject.pruning.config, inputs, dependency_aware=aware)
        small = fxcompress.speedup(reference, inputs)
    require_close("speedup in float32", run(small, inputs), run(reference, inputs), SINGLE)


def law_widths(subject: Subject) -> None:
    """Law 2: no filter that a dependency-aware structured mask selected is left in the small module.

    For every layer with whole masked filters (weight row and bias), the small layer has at most as many
    filters as were unmasked. Where one entry gives all layers the same sparsity s and the network's kinds
    keep channels one to one, each layer has exactly floor(s·n) of its n filters masked, or none (it feeds an
    output). Level pruning and external masks are outside this law.
    """
    pruning = subject.pruning
    if not pruning.config or not pruning.dependency_aware:
        return
    if any(entry.get("pruner") == "level" for entry in pruning.config):
        return
    simple = pruning.uniform is not None and set(subject.network.kinds) <= ONE_TO_ONE
    small = prunable(subject.small)
    for name, layer in prunable(subject.model).items():
        if name not in subject.masks or "weight" not in subject.masks[name]:
            continue
        gone = masked_filters(layer, subject.masks[name])
        total = len(gone)
        kept = total - int(gone.sum())
        if name in small:
            left = _filter_axis(small[name], small[name].get_parameter("weight")).shape[0]
            assert left <= kept, f"{name} keeps {left} of {total} filters although {total - kept} are masked"
        if simple:
            expected = total - math.floor(pruning.uniform * total + 1e-9)  # type: ignore[operator]
            assert kept in (expected, total), f"{name}: {kept} of {total} filters kept, expected {expected}"


def _filter_axis(layer: nn.Module, tensor: Tensor) -> Tensor:
    """`tensor` (a weight or its mask) with the output channels as axis 0."""
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return tensor
    grouped = tensor.reshape(layer.groups, -1, *tensor.shape[1:]).transpose(1, 2)
    return grouped.flatten(0, 1)


def masked_filters(layer: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    """bool [filters]: the weight of the filter is masked entirely and its bias, if any, is masked too."""
    gone = (_filter_axis(layer, masks["weight"]) == 0).flatten(1).all(1)
    if getattr(layer, "bias", None) is not None:
        gone &= masks["bias"] == 0 if "bias" in masks else torch.zeros_like(gone)
    return gone


def law_size(subject: Subject) -> None:
    """Law 3: parameters and MACs never grow; speedup of the small module changes nothing."""
    before, after = count_parameters(subject.model), count_parameters(subject.small)
    assert after <= before, f"parameters grew from {before} to {after}"
    before, after = count_flops(subject.model, subject.inputs), count_flops(subject.small, subject.inputs)
    assert after <= before, f"FLOPs grew from {before} to {after}"
    again = fxcompress.speedup(subject.small, subject.inputs)
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (subject.small, again)]
    changed = {name: (shapes[0].get(name), shapes[1].get(name)) for name in shapes[0] | shapes[1]}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    assert not changed, f"a second speedup changed {changed} (first, second)"
    require_close("second speedup", run(again, subject.inputs), run(subject.small, subject.inputs), EXACT)


def law_training(subject: Subject) -> None:
    """Law 4: the small and the masked module train where the original does; names are the original's.

    Besides them there may be biases of layers that had none, and constants of the graph (`_index_0`).
    """
    names = set(subject.model.state_dict())
    biases = {f"{layer}.bias" for layer in prunable(subject.model)} | {f"{name}_bias" for name in names}
    new = {name for name in subject.small.state_dict() if not name.startswith("_")} - names - biases
    assert not new, f"the small module's state dict has names the model had not: {sorted(new)}"
    try:
        untrained = _step(copy.deepcopy(subject.masked).train(), subject.inputs)
    except (ValueError, RuntimeError):
        # The original cannot train: one value per channel in a norm, a write into what backward needs.
        return
    for label, module in (("small", subject.small), ("compiled", subject.compiled)):
        twin = copy.deepcopy(module).train()
        stuck = _step(twin, subject.inputs)
        assert stuck <= untrained, f"{label}: no finite gradient for {sorted(stuck - untrained)}"
        first, second = run(twin.eval(), subject.inputs), run(twin, subject.inputs)
        assert relative_error(first, second) == 0, f"{label}: eval mode is random after training"


def _step(model: nn.Module, inputs: Inputs) -> set[str]:
    """One SGD step; the names of parameters without a finite gradient."""
    torch.manual_seed(0)
    leaves = tree_flatten(call(model, inputs))[0]
    torch.stack([leaf.square().mean() for leaf in leaves]).sum().backward()
    named = dict(model.named_parameters())
    torch.optim.SGD(named.values(), lr=1e-4).step()
    return {name for name, p in named.items() if p.grad is None or not bool(p.grad.isfinite().all())}


def law_mask_order(subject: Subject) -> None:
    """Law 5, order: masks inserted by compile, or given to speedup from outside, leave the same module.

    For masks on single layers (if there are any) and every fourth network; a normalization whose statistics
    dependency-aware masks restrict is another function than the one external masks are given for.
    """
    if subject.network.seed % 4 != 1 or not subject.pruning.config or subject.pruning.dependency_aware:
        return
    if not subject.masks_layers_only or not subject.masks:
        return
    other = fxcompress.speedup(subject.model, subject.inputs, masks=subject.masks)
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (subject.small, other)]
    assert shapes[0] == shapes[1], f"masks by compile leave {shapes[0]}, the same from outside {shapes[1]}"
    require_close("masks from outside", run(other, subject.inputs), run(subject.small, subject.inputs), EXACT)


def law_graph(subject: Subject) -> None:
    """Law 5: graphs lint, modules print, copies are equal bit for bit, speedup leaves its input alone."""
    before = run(subject.compiled, subject.inputs)
    state = {name: tensor.clone() for name, tensor in subject.compiled.state_dict().items()}
    small = subject.small
    for module in (subject.compiled, small):
        module.graph.lint()
        assert str(module), "the module cannot be printed"
        twin = copy.deepcopy(module)
        twin.load_state_dict(module.state_dict())
        assert relative_error(run(twin, subject.inputs), run(module, subject.inputs)) == 0, "deepcopy differs"
    assert relative_error(run(subject.compiled, subject.inputs), before) == 0, "speedup changed its input"
    after = subject.compiled.state_dict()
    assert state.keys() == after.keys(), "speedup changed its input's names"
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items()), (
        "speedup changed its input"
    )


Law = Callable[[Subject], None]
LAWS: tuple[Law, ...] = (
    law_capture,
    law_train_mode,
    law_masks,
    law_exact,
    law_widths,
    law_size,
    law_training,
    law_graph,
    law_mask_order,
    law_compaction,
    law_exact_single,
)
WITHOUT_PRUNING = (law_capture, law_train_mode)


def check(subject: Subject, laws: tuple[Law, ...] = LAWS) -> None:
    """Every law on `subject`.

    Raises `LawFailure` for the first that does not hold (whatever was raised), `Unsuited` where the example
    proves nothing.
    """
    if amplification(subject.model, subject.inputs) > AMPLIFICATION:
        raise Unsuited("ill-conditioned")
    for law in laws if subject.prunes else [law for law in laws if law in WITHOUT_PRUNING]:
        try:
            law(subject)
        except Exception as error:
            if law not in WITHOUT_PRUNING and _ill_conditioned_once_masked(subject):
                raise Unsuited("ill-conditioned once masked") from error
            raise LawFailure(subject, law.__name__, error) from error


def _ill_conditioned_once_masked(subject: Subject) -> bool:
    try:
        return amplification(subject.masked, subject.inputs) > AMPLIFICATION
    except Exception:  # compile itself failed: the law's own error is the one to report
        return False
