"""Operators of converted linear layers: bits in bytes, and products against formulas of their own."""

from __future__ import annotations

import pytest
import torch

from fxcompress.kernels import dequantized, dynamic_matmul, matmul_nbits, pack, unpack

RANDOM = torch.Generator().manual_seed(0)


def test_the_first_of_two_four_bit_numbers_is_in_the_low_bits() -> None:
    integers = torch.tensor([[1, 2, 15, 0, 7]], dtype=torch.uint8)
    packed = pack(integers, 4)
    assert packed.tolist() == [[0x21, 0x0F, 0x07]]
    assert unpack(packed, 4).tolist() == [[1, 2, 15, 0, 7, 0]]
    assert pack(integers, 8).tolist() == integers.tolist()


def test_a_weight_by_hand() -> None:
    """K = 3 in one block of 16: (q − z) · s with z = 2, s = ½, and the zero point of no zero points, 8."""
    blocks = torch.zeros(1, 1, 16, dtype=torch.uint8)
    blocks[0, 0, :3] = torch.tensor([0, 2, 15], dtype=torch.uint8)
    scales = torch.tensor([[0.5]])
    zeros = pack(torch.tensor([[2]], dtype=torch.uint8), 4)
    assert dequantized(pack(blocks, 4), scales, zeros, 3, 4).tolist() == [[-1.0, 0.0, 6.5]]
    assert dequantized(pack(blocks, 4), scales, None, 3, 4).tolist() == [[-4.0, -3.0, 3.5]]
    x = torch.tensor([[1.0, 5.0, 2.0]])
    assert matmul_nbits(x, pack(blocks, 4), scales, zeros, 3, 1, 4, 16, 0).tolist() == [[12.0]]


def test_at_level_4_inputs_are_rounded_in_blocks_by_hand() -> None:
    """Two blocks of 16: 127 and 0.4 on steps of 1, 254 and 1.1 on steps of 2."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 16], x[0, 17] = 127.0, 0.4, 254.0, 1.1
    blocks = torch.full((1, 2, 16), 9, dtype=torch.uint8)  # all weights are 1
    args = (
        x,
        pack(blocks, 8),
        torch.full((1, 2), 1.0),
        torch.full((1, 2), 8, dtype=torch.uint8),
        32,
        1,
        8,
        16,
    )
    assert matmul_nbits(*args, 4).tolist() == [[127.0 + 0.0 + 254.0 + 2.0]]
    assert matmul_nbits(*args, 0).tolist() == [[pytest.approx(127.0 + 0.4 + 254.0 + 1.1)]]


def test_a_dynamic_product_is_the_one_of_integers() -> None:
    """Range −1 … 254: s = 1, z = 1, so x is exact: 254 · 3 − 2 = 760, times the weight's scale."""
    x = torch.tensor([[254.0, -1.0]])
    weight = torch.tensor([[3, -100], [2, 127]], dtype=torch.int8)
    got = dynamic_matmul(x, weight, torch.tensor([0.5, 2.0]))
    assert got.tolist() == [[380.0, 2 * (-25400.0 - 127.0)]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [(5,), (2, 3)])
def test_torch_knows_the_shapes(bits: int, rows: tuple[int, ...]) -> None:
    x = torch.randn(*rows, 20, generator=RANDOM)
    blocks = torch.randint(0, 1 << bits, (6, 2, 16), generator=RANDOM, dtype=torch.uint8)
    zeros = pack(torch.randint(0, 1 << bits, (6, 2), generator=RANDOM, dtype=torch.uint8), bits)
    args = (x, pack(blocks, bits), torch.rand(6, 2, generator=RANDOM), zeros, 20, 6, bits, 16, 4)
    torch.library.opcheck(matmul_nbits, args, test_utils=("test_schema", "test_faketensor"))
    weight = torch.randint(-127, 128, (20, 6), generator=RANDOM, dtype=torch.int8)
    dynamic = (x, weight, torch.rand(6, generator=RANDOM))
    torch.library.opcheck(dynamic_matmul, dynamic, test_utils=("test_schema", "test_faketensor"))
