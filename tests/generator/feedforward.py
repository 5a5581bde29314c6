"""Feed-forward blocks of transformers: MLPs, gated MLPs (apart or fused), dense mixtures of experts."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import TOKENS, step
from tests.generator.tokens import FEATURES, residual

HIDDEN = (8, 12, 6, 10)
ACTS = ("gelu", "silu", "relu", "gelu", "sigmoid", "tanh")


@step(weight=6, reads=TOKENS)
def mlp(draft: Draft, x: Value) -> Value:
    """Linear, activation, Linear."""

    def inner(y: Value) -> Value:
        hidden, act = draft.pick(HIDDEN), draft.pick((*ACTS, "hardswish", "relu({}).square", "gelu"))
        first = draft.module(f"nn.Linear({y.features}, {hidden}{draft.pick(('', ', bias=False'))})")
        second = draft.module(f"nn.Linear({hidden}, {y.features})")
        if "square" in act:
            return draft.emit(f"{second}(F.relu({first}({y})).square())")
        return draft.emit(f"{second}(F.{act}({first}({y})))")

    return residual(draft, x, inner)


@step(weight=5, reads=TOKENS)
def gated_mlp(draft: Draft, x: Value) -> Value:
    """SwiGLU, GEGLU: down(act(gate(x)) * up(x)), gate and up separate or one layer taken apart."""

    def inner(y: Value) -> Value:
        hidden, act, bias = draft.pick(HIDDEN), draft.pick(ACTS), draft.pick(("", ", bias=False"))
        form = draft.pick(("separate", "chunk", "glu", "slices", "split", "pairs"))
        if form == "separate":
            gate, up = (draft.module(f"nn.Linear({y.features}, {hidden}{bias})") for _ in "gu")
            product = draft.local(f"F.{act}({gate}({y})) * {up}({y})")
        else:
            both = draft.local(f"{draft.module(f'nn.Linear({y.features}, {2 * hidden}{bias})')}({y})")
            if form == "glu":
                product = draft.local(f"F.glu({both}, dim=-1)")
            else:
                halves = {
                    "chunk": f"{both}.chunk(2, dim=-1)",
                    "slices": f"{both}[..., :{hidden}], {both}[..., {hidden}:]",
                    "split": f"{both}.split({hidden}, dim=2)",
                    "pairs": f"{both}.view({y}.shape[0], -1, {hidden}, 2).unbind(-1)",
                }[form]
                gate, up = draft.locals(halves, 2)
                product = draft.local(f"F.{act}({gate}) * {up}")
        return draft.emit(f"{draft.module(f'nn.Linear({hidden}, {y.features}{bias})')}({product})")

    return residual(draft, x, inner)


@step(weight=2, reads=TOKENS)
def mixture_of_experts(draft: Draft, x: Value) -> Value:
    """Every expert on every token, weighted by a softmax gate; the experts stacked or in a ModuleList."""

    def inner(y: Value) -> Value:
        experts, hidden, c = draft.pick((2, 3)), draft.pick((6, 4)), y.features
        gate = draft.local(f"{draft.module(f'nn.Linear({c}, {experts})')}({y}).softmax(-1)")
        form = draft.pick(("einsum", "bmm", "list", "stack"))
        if form == "list":
            layers = ", ".join(
                [f"nn.Sequential(nn.Linear({c}, {hidden}), nn.GELU(), nn.Linear({hidden}, {c}))"] * experts
            )
            layer = draft.module(f"nn.ModuleList([{layers}])")
            terms = " + ".join(f"{gate}[..., {i}:{i + 1}] * {layer}[{i}]({y})" for i in range(experts))
            return draft.emit(terms)
        if form == "stack":
            layers = ", ".join([f"nn.Linear({c}, {c})"] * experts)
            layer = draft.module(f"nn.ModuleList([{layers}])")
            stacked = draft.local(f"torch.stack([layer({y}) for layer in {layer}], dim=-1)")
            return draft.emit(f"({stacked} * {gate}.unsqueeze(2)).sum(-1)")
        up, down = draft.parameter(experts, c, hidden), draft.parameter(experts, hidden, c)
        if form == "einsum":
            inside = draft.local(f"F.gelu(torch.einsum('btc,ech->bteh', {y}, {up}))")
            return draft.emit(f"torch.einsum('bteh,ehc,bte->btc', {inside}, {down}, {gate})")
        flat = draft.local(f"{y}.reshape(1, -1, {c}).expand({experts}, -1, -1)")
        out = draft.local(f"torch.bmm(F.silu(torch.bmm({flat}, {up})), {down})")
        each = draft.local(f"{out}.view({experts}, {y}.shape[0], -1, {c}).permute(1, 2, 0, 3)")
        return draft.emit(f"({each} * {gate}.unsqueeze(-1)).sum(dim=2)")

    return residual(draft, x, inner)


@step(weight=2, reads=TOKENS)
def feature_einsum(draft: Draft, x: Value) -> Value:
    """A linear map of the features written as an einsum, a product or a tensordot."""
    out = draft.pick(FEATURES)
    weight, turned = draft.parameter(out, x.features), draft.parameter(x.features, out)
    options = (
        f"torch.einsum('btc,oc->bto', {x}, {weight})", f"{x} @ {turned}", f"torch.matmul({x}, {weight}.t())",
        f"F.linear({x}, {weight})", f"torch.einsum('...c,cd->...d', {x}, {turned})",
        f"torch.tensordot({x}, {turned}, dims=1)",
    )  # fmt: skip
    return draft.emit(draft.pick(options))
