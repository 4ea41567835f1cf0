"""The benchmark's peers, and the memory that they and we take."""

import contextlib
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from covpool.bench import memory
from covpool.bench.checkouts import as_published, load_module
from covpool.bench.features import Exact, Shape, make_features, make_weight
from covpool.bench.layers import Layers, make_cases
from covpool.bench.peers import PEERS, open_peer
from made_up_peer import CHATTY, DEADLY, SMALL, made_up_case, make_clone

CPU = torch.device("cpu")


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "clone")


def test_cuda_calls_do_nothing_on_a_cpu_and_are_restored():
    tensor_method, module_method = torch.Tensor.cuda, torch.nn.Module.cuda
    x, layer = torch.ones(2), torch.nn.Linear(1, 1)
    with contextlib.suppress(KeyError), as_published(CPU):
        assert x.cuda() is x
        assert x.cuda(0, non_blocking=True) is x
        assert layer.cuda() is layer
        raise KeyError
    assert torch.Tensor.cuda is tensor_method
    assert torch.nn.Module.cuda is module_method
    assert "cuda" in vars(torch.nn.Module)
    with as_published(torch.device("cuda")):
        assert torch.Tensor.cuda is tensor_method


def test_loading_leaves_no_traces(tmp_path):
    mpmath = pytest.importorskip("mpmath")
    before = mpmath.mp.prec
    file = tmp_path / "module.py"
    file.write_text("import mpmath\nmpmath.mp.dps = 99\nVALUE = mpmath.mp.dps\n")
    assert load_module(file, CPU).VALUE == 99
    assert mpmath.mp.prec == before
    assert [path.name for path in tmp_path.iterdir()] == ["module.py"]


def test_peers_table_is_sound():
    for name, peer in PEERS.items():
        assert peer.name == name
        assert bool(peer.files) != bool(peer.package)
        rows = [(row.task, row.name) for row in peer.rows]
        assert len(set(rows)) == len(rows)
        for row in peer.rows_of("pooling"):
            assert "exact" in row.counterparts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast-MPNCOV=x", "unknown peer 'fast-MPNCOV'.*did you mean 'fast-MPN-COV'"),
        ("fast-MPN-COV", "is read from your clone of it; git clone https://github.com/jiangtaoxie"),
        ("fast-MPN-COV=nowhere", "no directory nowhere; git clone https://github.com/jiangtaoxie"),
        ("fast-MPN-COV=.", "no src/representation/MPNCOV.py in it, so not a clone of fast-MPN-COV"),
        ("spd-learn=somewhere", "installed package; give --peer spd-learn, without a path"),
    ],
)
def test_mistaken_peer_is_named(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_peer(text, CPU)


def test_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="spd_learn is not installed here; pip install spd-learn"):
        open_peer("spd-learn", CPU)


def test_commit_of_a_clone(clone):
    assert open_peer(f"DifferentiableSVD={clone}", CPU).version is None
    git = ["git", "-C", str(clone), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    version = open_peer(f"DifferentiableSVD={clone}", CPU).version
    assert len(version) >= 40
    (clone / "src" / "representation" / "MPNCOV.py").write_text("")
    assert open_peer(f"DifferentiableSVD={clone}", CPU).version == f"{version}+modified"


def test_our_side_gets_the_peers_output(clone):
    opened = open_peer(f"DifferentiableSVD={clone}", CPU)
    names = [case.name for case in make_cases(["exact", "svd-pi"], [opened])]
    assert names[:4] == ["exact", "svd-pi", "exact (triangle)", "svd-pi (triangle)"]
    assert "DifferentiableSVD/SVD_Pade (triangle)" in names
    with_vector = [case.name for case in make_cases(["exact"], [opened], vector=True)]
    assert with_vector[0] == "exact (triangle)"
    assert all(name.endswith(" (triangle)") for name in with_vector)


BLOCK = 64 << 20
"""Bytes."""


def growth_of_two_blocks():
    def prepare(features, weight):
        def step():
            # Two blocks at a time, one of them freed before the next, and pages that are touched.
            first = torch.ones(BLOCK // 4)
            first = first + 1
            return first.sum(), features

        return step

    case = replace(made_up_case("large"), prepare=prepare)
    return memory.growth(Layers(SMALL), "2x4x4", case)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_memory_is_the_growth_during_the_step():
    """In a process of its own, as it is measured: what others have freed there would hide it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(growth_of_two_blocks)
    assert found == pytest.approx(2 * BLOCK, abs=4 << 20)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_memory_of_a_case_that_kills_its_process_is_told(clone):
    (clone / "src" / "representation" / "SVD_Pade.py").write_text(DEADLY)
    layers = Layers(replace(SMALL, peers=(f"DifferentiableSVD={clone}",)))
    wanted = ("exact", "SVD_Pade", "MPNCOV", "SVD_PI")
    cases = [case for case in layers.cases("2x4x9") if case.facts["method"] in wanted]
    found = memory.peak_memory(layers, "2x4x9", cases)
    assert list(found) == [case.name for case in cases]
    assert found["DifferentiableSVD/SVD_Pade (triangle)"] == (
        "the process that measured it ended with status 3"
    )
    assert "SVD_PI.py" in found["DifferentiableSVD/SVD_PI (triangle)"]
    assert isinstance(found["exact"], int)
    assert isinstance(found["DifferentiableSVD/MPNCOV (triangle)"], int)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
def test_what_a_peer_prints_does_not_get_between_the_answers(clone):
    (clone / "src" / "representation" / "SVD_Pade.py").write_text(CHATTY)
    layers = Layers(replace(SMALL, peers=(f"DifferentiableSVD={clone}",)))
    cases = [c for c in layers.cases("2x4x9") if c.facts["method"] in ("SVD_Pade", "MPNCOV")]
    found = memory.peak_memory(layers, "2x4x9", cases)
    assert "illegal value" in str(found["DifferentiableSVD/SVD_Pade (triangle)"])
    assert isinstance(found["DifferentiableSVD/MPNCOV (triangle)"], int)


def test_spd_learn_is_measured():
    pytest.importorskip("spd_learn")
    opened = open_peer("spd-learn", CPU)
    shape = Shape.parse("2x4x9")
    x = make_features(shape, condition=10, dtype=torch.float64)
    weight = make_weight(shape, dtype=torch.float64)
    exact = Exact.of(x, weight)
    for vector in (False, True):
        (case,) = make_cases([], [opened], vector=vector)
        with case.context():
            root, gradient = case.prepare(x, weight)()
        assert max(exact.errors(root, gradient)) < 1e-8
    assert opened.version
