"""A checkout for the benchmark's tests, with `.cuda()` where reference code has it."""

from pathlib import Path

from covpool.bench.options import LayersOptions
from covpool.bench.timing import Case

LAYER = """
import torch
SCALE = torch.ones(1, dtype=torch.float64).cuda()

def CovpoolLayer(x):
    x = x.cuda().double().flatten(2)
    x = (x - x.mean(-1, keepdim=True)) * SCALE.cuda()
    return x @ x.mT / x.shape[-1]

def SqrtmLayer(covariance, iterations):
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT).float()

def TriuvecLayer(root):
    row, column = torch.triu_indices(root.shape[-1], root.shape[-1])
    return root[:, row, column][..., None]
"""
BROKEN = "raise NameError('feature_scaling is not defined')"
DEADLY = """
import os
class SVD_Pade:
    def __call__(self, x):
        os._exit(3)
"""
CHATTY = """
import os
print("on import")

class SVD_Pade:
    def __call__(self, x):
        print("by Python")
        os.write(1, b"below Python, as LAPACK does\\n")
        raise RuntimeError("illegal value")
"""

SMALL = LayersOptions(
    shapes=("2x4x4",), methods=("exact",), threads=1, rounds=1, warm_up=0, memory=False
)


def make_clone(folder: Path) -> Path:
    """A checkout in the layout of DifferentiableSVD: the layer in MPNCOV.py works, that in
    SVD_Pade.py does not import, and the others are missing."""
    representation = folder / "src" / "representation"
    representation.mkdir(parents=True)
    (representation / "MPNCOV.py").write_text(LAYER)
    (representation / "SVD_Pade.py").write_text(BROKEN)
    return folder


def made_up_case(name: str, **options) -> Case:
    def prepare(features, weight):
        raise AssertionError("not to be prepared here")

    return Case(name=name, prepare=prepare, **options)
