"""oneDNN's matrix products in place of PyTorch's, in a process of their own: they stay for the rest of it."""

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import torch
from benchmarks.studies.onednn import use_onednn

def products(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b, c, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((48, 80), (80, 32), (48, 32), (32,)))
    a.requires_grad_(), b.requires_grad_()
    values = [
        a @ b,
        a.t()[:, :32] @ b.t()[:, :5],
        torch.addmm(bias, a, b),
        torch.addmm(c, a, b, beta=0.5, alpha=-2),
        torch.addmm(torch.full_like(c, torch.nan), a, b, beta=0),
    ]
    values += torch.autograd.grad(sum((value**2).sum() for value in values if value.shape == c.shape), (a, b))
    with torch.no_grad():
        values += [torch.mm(a, b, out=torch.empty_like(c)), torch.addmm(c, a, b, beta=2, out=torch.empty_like(c))]
        values += [c.clone().addmm_(a, b, alpha=3)]
    return [value.detach().clone() for value in values]

by_pytorch = {dtype: products(dtype) for dtype in (torch.float32, torch.float64)}
use_onednn()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    for dtype, expected in by_pytorch.items():
        for ours, theirs in zip(products(dtype), expected, strict=True):
            assert (ours - theirs).abs().max() <= 20 * torch.finfo(dtype).eps * theirs.abs().max()
print(sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise"))
"""


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="PyTorch is built without oneDNN",
)
def test_products_and_gradients_are_those_of_pytorch() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) >= 12  # of float32: eight products and their gradients
