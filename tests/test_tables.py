"""What functions say of arguments that are no tensors, and tables of names that they lack."""

import numpy as np
import pytest
import torch

import covpool
from covpool.analysis import conditioning, fidelity

FUNCTIONS = {
    "eigh": covpool.eigh,
    "svd": covpool.svd,
    "eigvalsh": covpool.eigvalsh,
    "svdvals": covpool.svdvals,
    "eigh_generalized": lambda matrix: covpool.eigh_generalized(matrix, matrix),
    "matrix_sqrt": covpool.matrix_sqrt,
    "matrix_inv_sqrt": covpool.matrix_inv_sqrt,
    "matrix_log": covpool.matrix_log,
    "matrix_power": lambda matrix: covpool.matrix_power(matrix, 0.5),
    "MatrixFunction('sqrt')": covpool.MatrixFunction("sqrt"),
    "cov_pool": covpool.cov_pool,
    "covariance": covpool.covariance,
    "triu_vector": covpool.triu_vector,
    "CovPool2d": covpool.CovPool2d(2, None),
    "diagnose": covpool.diagnose,
    "gauge_dependence": lambda matrix: covpool.gauge_dependence(lambda w, v: w.sum(), matrix),
    "feature_spectrum": conditioning.feature_spectrum,
    "feature_fidelity": lambda features: fidelity.feature_fidelity(features, ["svd"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.eye(2), "numpy.ndarray"),
        ([[1.0, 0.0], [0.0, 1.0]], "list"),
        ("identity", "str"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_tensor_is_told(name, value, kind):
    with pytest.raises(TypeError) as caught:
        FUNCTIONS[name](value)
    assert str(caught.value).startswith(f"{name} needs a torch.Tensor, got {kind}; ")


def test_parameters_and_subclasses_are_tensors():
    class Own(torch.Tensor):
        pass

    matrix = torch.eye(2, dtype=torch.float64)
    for value in (torch.nn.Parameter(matrix), matrix.as_subclass(Own)):
        assert torch.equal(covpool.matrix_sqrt(value).as_subclass(torch.Tensor), matrix)


@pytest.mark.parametrize(
    ("table", "name", "near"),
    [
        ("METHODS", "svd_taylor", "svd-taylor"),
        ("KERNELS", "pad", "pade"),
        ("FUNCTIONS", "sqr", "sqrt"),
    ],
)
def test_a_table_names_the_nearest_row(table, name, near):
    rows = getattr(covpool, table)
    with pytest.raises(KeyError, match=f"unknown .*{name}.*choose from .*did you mean '{near}'"):
        rows[name]
    assert rows.get(name) is None
    assert name not in rows
    with pytest.raises(KeyError, match=r"unknown .*3"):
        rows[3]
    with pytest.raises(TypeError):
        rows[name] = rows[near]
