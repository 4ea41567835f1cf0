"""Configuration, schedules of methods, course of the learning rate."""

import dataclasses

import pytest

from covpool.train.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from covpool.train.module import learning_rate_factor
from covpool.train.schedule import method_schedule


def test_a_configuration_survives_plain_dictionaries():
    config = RunConfig(
        model=ModelConfig(method="svd-taylor", constants={"degree": 7}),
        optim=OptimConfig(decay="step", milestones=(3, 5)),
        train=TrainConfig(seed=3),
    )
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "key"), [({"modle": {}}, "'modle'"), ({"model": {"metod": "gap"}}, "model.metod")]
)
def test_a_dictionary_of_another_version_is_refused(values, key):
    with pytest.raises(ValueError, match=key):
        RunConfig.from_dict(values)


OUT_OF_RANGE = {
    ModelConfig: {"reduced_channels": 0, "last_stride": 3, "drop_rate": 1.0},
    OptimConfig: {
        "learning_rate": 0.0,
        "momentum": 1.0,
        "weight_decay": -1.0,
        "milestones": (3, 2),
        "factor": 0.0,
        "warmup_epochs": -1.0,
        "clip_norm": 0.0,
        "classifier_multiplier": 0.0,
        "label_smoothing": 1.0,
        "weight_average": 1.0,
        "decay": "linear",
        "trained": "head",
    },
    TrainConfig: {
        "epochs": 0,
        "seed": -1,
        "devices": 0,
        "nodes": 0,
        "threads": 0,
        "checkpoint_steps": -1,
        "accumulate": 0,
        "precision": "8",
        "on_nonfinite": "ignore",
        "loggers": ("tensorboard", "mlflow"),
    },
}


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (owner, name, value)
        for owner, pairs in OUT_OF_RANGE.items()
        for name, value in pairs.items()
    ],
)
def test_values_out_of_range_are_refused_by_name(owner, name, value):
    with pytest.raises(ValueError, match=rf"\.{name} must be .*not"):
        owner(**{name: value})


def test_options_that_exclude_each_other():
    with pytest.raises(ValueError, match=r"milestones.*empty unless optim.decay is step"):
        OptimConfig(decay="cosine", milestones=(2,))
    with pytest.raises(ValueError, match="nesterov"):
        OptimConfig(nesterov=True, momentum=0.0)


STEP_DECAY = OptimConfig(decay="step", milestones=(3, 5))


def schedule_of(*, optim=None, **model):
    return method_schedule(RunConfig(model=ModelConfig(**model), optim=optim or OptimConfig()))


def test_hybrid_switches_at_the_last_milestone():
    schedule = schedule_of(method="isqrt-cov", hybrid="svd-pade", optim=STEP_DECAY)
    assert [schedule.name_at(epoch) for epoch in (0, 4, 5)] == [
        "isqrt-cov",
        "isqrt-cov",
        "svd-pade",
    ]
    assert str(schedule) == "0:isqrt-cov,5:svd-pade"
    assert [schedule.switches_to(epoch) for epoch in (0, 3, 5)] == [None, None, "svd-pade"]


@pytest.mark.parametrize(
    ("model", "optim", "message"),
    [
        ({"hybrid": "svd-pade"}, {}, "last of optim.milestones, and there is none"),
        ({"hybrid": "svd-pade"}, {"decay": "step"}, "last of optim.milestones, and there is none"),
        (
            {"hybrid": "svd-pade"},
            {"decay": "step", "milestones": (30,)},
            "switches at epoch 30, .* train.epochs 30 ends before it",
        ),
        (
            {"hybrid": "svd-pade", "schedule": "0:isqrt-cov,2:svd-pade"},
            {"decay": "step", "milestones": (2,)},
            "hybrid 'svd-pade' and model.schedule .* exclude each other",
        ),
        ({"hybrid": "isqrt-cov"}, {}, "is model.method too, so that nothing would be switched"),
        ({"pretrained": True, "init_from": "run"}, {}, "init_from 'run' exclude each other"),
    ],
)
def test_protocols_that_cannot_be_followed(model, optim, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(model=ModelConfig(**model), optim=OptimConfig(**optim), train=TrainConfig())


@pytest.mark.parametrize(("method", "hybrid"), [("gap", "svd-pade"), ("isqrt-cov", "gap")])
def test_hybrid_training_does_not_change_the_kind_of_pooling(method, hybrid):
    with pytest.raises(ValueError, match=f"model.hybrid '{hybrid}' switches between gap and"):
        schedule_of(method=method, hybrid=hybrid, optim=STEP_DECAY)


def test_an_unknown_hybrid_method_is_named():
    with pytest.raises(ValueError, match=r"'svd-pad'.*did you mean 'svd-pade'"):
        schedule_of(hybrid="svd-pad", optim=STEP_DECAY)


def test_one_method_is_a_schedule_too():
    schedule = schedule_of(method="svd-taylor", constants={"degree": 7})
    method = schedule.method_at(1000)
    assert method is not None
    assert (method.name, method.constants) == ("svd-taylor", {"degree": 7})
    assert str(schedule) == "svd-taylor"


@pytest.mark.parametrize("text", ["0:isqrt-cov, 20:svd-pade", "20:svd-pade"])
def test_a_schedule_switches_at_its_epochs(text):
    schedule = schedule_of(method="isqrt-cov", schedule=text)
    names = [schedule.name_at(epoch) for epoch in (0, 19, 20, 21)]
    assert names == ["isqrt-cov", "isqrt-cov", "svd-pade", "svd-pade"]
    assert str(schedule) == "0:isqrt-cov,20:svd-pade"


def test_constants_go_to_the_methods_that_have_them():
    schedule = schedule_of(schedule="0:isqrt-cov,5:svd-taylor", constants={"degree": 7})
    first, second = schedule.method_at(0), schedule.method_at(5)
    assert first is not None
    assert second is not None
    assert "degree" not in first.constants
    assert second.constants["degree"] == 7


def test_gap_has_no_method():
    assert schedule_of(method="gap").method_at(0) is None


def test_step_decay_multiplies_from_each_milestone():
    config = OptimConfig(decay="step", milestones=(2, 4), factor=0.1)
    factors = [learning_rate_factor(config, epoch, 6) for epoch in (0, 1.99, 2, 3.9, 4, 6)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_decay_falls_from_one_to_zero():
    config = OptimConfig(decay="cosine")
    factors = [learning_rate_factor(config, epoch, 10) for epoch in (0, 5, 10)]
    assert factors == pytest.approx([1, 0.5, 0], abs=1e-12)


@pytest.mark.parametrize("decay", ["step", "cosine"])
def test_warm_up_rises_to_the_full_rate(decay):
    config = dataclasses.replace(OptimConfig(warmup_epochs=2), decay=decay)
    factors = [learning_rate_factor(config, epoch, 10) for epoch in (0, 1, 2)]
    assert 0 < factors[0] < 0.001
    assert factors[1] == pytest.approx(0.5, abs=0.001)
    assert factors[2] == pytest.approx(1)
