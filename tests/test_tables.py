"""What functions say of arguments that are no tensors, tables of names that they lack, and the
names that editors and type checkers know."""

import importlib.util
import inspect
import re
import typing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import covpool
from covpool import distances
from covpool.analysis import conditioning, fidelity
from covpool.linalg.functions.odd import ODD_FUNCTIONS
from covpool.linalg.gradients.kernels import Kernel
from covpool.linalg.inverse_root import INVERSE_ROOTS, InverseRootMethod
from covpool.linalg.names import (
    FunctionName,
    InverseRootName,
    KernelName,
    MethodName,
    PoolingName,
)
from covpool.poolings import POOLINGS

PUBLIC = {name: getattr(covpool, name) for name in covpool.__all__}
CALLS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def network():
    return covpool.create_model("small-convnet", 2)


FUNCTIONS = {
    "eigh": covpool.eigh,
    "svd": covpool.svd,
    "eigvalsh": covpool.eigvalsh,
    "svdvals": covpool.svdvals,
    "eigh_generalized": lambda matrix: covpool.eigh_generalized(matrix, matrix),
    "matrix_sqrt": covpool.matrix_sqrt,
    "matrix_inv_sqrt": covpool.matrix_inv_sqrt,
    "matrix_inv_root": lambda matrix: covpool.matrix_inv_root(matrix, 4),
    "matrix_log": covpool.matrix_log,
    "matrix_power": lambda matrix: covpool.matrix_power(matrix, 0.5),
    "MatrixFunction('sqrt')": covpool.MatrixFunction("sqrt"),
    "cov_pool": covpool.cov_pool,
    "covariance": covpool.covariance,
    "triu_vector": covpool.triu_vector,
    "CovPool2d": covpool.CovPool2d(2, None),
    "diagnose": covpool.diagnose,
    "matrix_exp": covpool.matrix_exp,
    "svd_function": lambda matrix: covpool.svd_function(matrix, "polar"),
    "polar": covpool.polar,
    "low_rank": lambda matrix: covpool.low_rank(matrix, 1),
    "orthogonal_procrustes": lambda matrix: covpool.orthogonal_procrustes(matrix, matrix),
    "kabsch": lambda points: covpool.kabsch(points, points),
    "matrix_function": lambda matrix: covpool.matrix_function(matrix, "sqrt"),
    "the model": lambda images: network()(images),
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


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "got", "remedy"),
    [
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo", "to_dense()"),
        (torch.eye(2).long(), "torch.int64", "float()"),
        (torch.eye(2).to(torch.float8_e4m3fn), "torch.float8_e4m3fn", "float()"),
    ],
    ids=["sparse", "integers", "float8"],
)
def test_tensors_that_it_cannot_compute_with_are_told_with_a_remedy(name, value, got, remedy):
    if name == "CovPool2d":
        value = value.to_dense().to(torch.float32).expand(1, 2, 2, 2).to(value.dtype)
        value = value.to_sparse() if "layout" in got else value
    elif name in ("the model", "feature_fidelity", "feature_spectrum", "gauge_dependence"):
        pytest.skip("looks at its tensor by others of these functions")
    with pytest.raises(ValueError, match=re.escape(got)) as caught:
        FUNCTIONS[name](value)
    assert remedy in str(caught.value)


def test_every_public_function_of_a_tensor_is_among_them():
    taking = {
        name
        for name, function in CALLS.items()
        if torch.Tensor in typing.get_type_hints(function).values()
        and torch.Tensor in {*map(typing.get_type_hints(function).get, parameters_of(function))}
    }
    assert len(taking) > 10
    assert taking <= set(FUNCTIONS)


def parameters_of(function):
    return inspect.signature(function).parameters


def test_what_stands_beside_a_tensor_is_told_too():
    matrix, array = torch.eye(2), np.ones(())
    calls = {
        "eigh_generalized needs": lambda value: covpool.eigh_generalized(matrix, value),
        "matrix_power: the exponent": lambda value: covpool.matrix_power(matrix, value),
        "matrix_log: the floor": lambda value: covpool.matrix_log(matrix, floor=value),
        "MatrixFunction: the exponent": lambda value: covpool.MatrixFunction(
            "power", exponent=value
        ),
    }
    for start, call in calls.items():
        for value in (array, [1.0]):
            with pytest.raises(TypeError) as caught:
                call(value)
            assert str(caught.value).startswith(start)


def test_parameters_and_subclasses_are_tensors():
    class Own(torch.Tensor):
        pass

    matrix = torch.eye(2, dtype=torch.float64)
    for value in (torch.nn.Parameter(matrix), matrix.as_subclass(Own)):
        assert torch.equal(covpool.matrix_sqrt(value).as_subclass(torch.Tensor), matrix)


NEAR = {
    "METHODS": ("svd_taylor", "svd-taylor"),
    "KERNELS": ("pad", "pade"),
    "FUNCTIONS": ("inverse_sqrt", "inv_sqrt"),
    "POOLINGS": ("dropcow", "dropcov"),
}


@pytest.mark.parametrize("table", [n for n, value in PUBLIC.items() if isinstance(value, Mapping)])
def test_a_table_names_the_nearest_row(table):
    rows, (name, near) = PUBLIC[table], NEAR[table]
    with pytest.raises(KeyError, match=f"unknown .*{name}.*choose from .*did you mean '{near}'"):
        rows[name]
    assert rows.get(name) is None
    assert name not in rows
    with pytest.raises(KeyError, match=r"unknown .*3"):
        rows[3]
    with pytest.raises(TypeError):
        rows[name] = rows[near]


@pytest.mark.parametrize(
    ("rows", "name", "near"),
    [
        (distances.DISTANCES, "bures", "bures-wasserstein"),
        (ODD_FUNCTIONS, "soft", "soft_threshold"),
        (covpool.METHODS, "minimax", "newton-schulz-minimax"),
    ],
)
def test_a_part_of_a_name_is_near_enough(rows, name, near):
    with pytest.raises(KeyError, match=f"did you mean '{near}'"):
        rows[name]


def test_the_names_that_editors_know_are_those_of_the_tables():
    for kind, names in {
        MethodName: covpool.METHODS,
        PoolingName: POOLINGS,
        KernelName: covpool.KERNELS,
        FunctionName: covpool.FUNCTIONS,
        InverseRootName: INVERSE_ROOTS,
    }.items():
        assert typing.get_args(kind) == tuple(names)


def test_what_takes_a_name_says_which():
    """So that editors complete it, and type checkers find a typo."""
    kinds = {
        "method": {
            MethodName | covpool.Method,
            PoolingName | covpool.Method | covpool.Pooling,
            InverseRootName | InverseRootMethod,
        },
        "kernel": {KernelName | Kernel},
        "pooling": {PoolingName | None, PoolingName | covpool.Method | covpool.Pooling},
    }
    found = 0
    for name, value in PUBLIC.items():
        call = (
            value.__init__
            if inspect.isclass(value) and name not in ("Method", "Pooling")
            else value
        )
        if not inspect.isfunction(call):
            continue
        for argument, kind in typing.get_type_hints(call).items():
            if argument in kinds:
                assert kind in kinds[argument], (name, argument)
                found += 1
    assert found > 10


def test_what_is_made_from_the_tables_is_up_to_date():
    file = Path(__file__).parents[1] / "tools" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", file)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert {file.name for file in tables.texts()} == {"names.py", "methods.json"}
    for file, text in tables.texts().items():
        assert file.read_text(encoding="utf-8") == text, "write it anew: python tools/tables.py"
