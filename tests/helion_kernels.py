"""Kernels in Helion for tests; a module of its own, since Helion reads a kernel's source from its file."""

# mypy: allow-untyped-decorators

import helion
import helion.language as hl
import torch

OFFSET = 1.0


@helion.kernel(static_shapes=True)
def softmax(x: torch.Tensor) -> torch.Tensor:
    rows, _ = x.size()
    out = torch.empty_like(x)
    for tile in hl.tile(rows):
        row = x[tile, :].to(torch.float32)
        weights = torch.exp(row - torch.amax(row, dim=1, keepdim=True))
        out[tile, :] = (weights / torch.sum(weights, dim=1, keepdim=True)).to(x.dtype)
    return out


@helion.kernel(static_shapes=True)
def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows, inner = x.size()
    _, columns = y.size()
    out = torch.empty([rows, columns], dtype=x.dtype, device=x.device)
    for row, column in hl.tile([rows, columns]):
        total = hl.zeros([row, column], dtype=torch.float32)
        for k in hl.tile(inner):
            total = torch.addmm(total, x[row, k], y[k, column])
        out[row, column] = total
    return out


@helion.kernel(static_shapes=True, configs=[helion.Config(block_sizes=[256], num_warps=8)])
def shifted(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + OFFSET


@helion.kernel(static_shapes=True)
def shift_in_place(x: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        x[tile] = x[tile] + OFFSET
    return x


@helion.kernel(static_shapes=False)
def shifted_of_any_size(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + OFFSET
    return out


@helion.kernel(static_shapes=True, ignore_warnings=[helion.exc.TensorOperationInWrapper])
def summed_in_parts(x: torch.Tensor) -> torch.Tensor:
    rows, _ = x.size()
    part = torch.empty([rows], dtype=torch.float32, device=x.device)
    for tile in hl.tile(rows):
        part[tile] = x[tile, :].to(torch.float32).sum(-1)
    return part.sum()
