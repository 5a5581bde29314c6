"""``Outcome``: what an accuracy method of quantization after training did, and what it had to leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """``done``: the links or layers it worked on; ``refused``: ``(layer, reason)`` of those it did not.

    ``changed``: names of the parameters that the compressed module has of its own since; the model it was
    captured from keeps what it had, and an optimizer made from that model does not train them.
    """

    done: tuple[str, ...]
    refused: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.done)} done: {', '.join(self.done) or 'none'}"]
        lines += [f"  refused {layer}: {reason}" for layer, reason in self.refused]
        if self.changed:
            lines.append(f"  parameters of the compressed module alone: {', '.join(self.changed)}")
        return "\n".join(lines)
