"""Configuration, schedules of methods, course of the learning rate."""

import dataclasses

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2

from covpool import POOLINGS, create_model
from covpool.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from covpool.train.optimizer import check_optimizer, learning_rate_course, make_optimizer
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
    DataConfig: {"mixup": -0.1, "cutmix": -1.0, "random_erasing": 1.5},
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
        "layer_decay": 0.0,
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
    with pytest.raises(ValueError, match=r"with optim.decay_options"):
        OptimConfig(decay="step", milestones=(2,), decay_options={"decay_epochs": 3})
    with pytest.raises(ValueError, match="nesterov"):
        OptimConfig(nesterov=True, momentum=0.0)
    with pytest.raises(ValueError, match=r"nesterov must be false with optim.name adamw"):
        OptimConfig(nesterov=True, name="adamw")
    with pytest.raises(ValueError, match=r"mixup_options .* no effect without data.mixup or"):
        DataConfig(mixup_options={"prob": 0.5})
    with pytest.raises(ValueError, match=r"erasing_options .* no effect without data.random_eras"):
        DataConfig(erasing_options={"mode": "pixel"})


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


def test_other_poolings_are_rows_too():
    assert schedule_of(method="gap").method_at(0) == POOLINGS["gap"]


def rates(config, epochs, wanted):
    """Relative rates at those epochs of a run of 100 steps an epoch."""
    course = learning_rate_course(config, epochs=epochs, steps_per_epoch=100)
    return [course(round(100 * epoch)) for epoch in wanted]


def test_step_decay_multiplies_from_each_milestone():
    config = OptimConfig(decay="step", milestones=(2, 4), factor=0.1)
    factors = rates(config, 6, (0, 1.99, 2, 3.9, 4, 6))
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_decay_falls_from_one_to_zero():
    factors = rates(OptimConfig(decay="cosine"), 10, (0, 5, 10))
    assert factors == pytest.approx([1, 0.5, 0], abs=1e-12)


@pytest.mark.parametrize("decay", ["step", "cosine", "constant", "tanh", "wsd"])
def test_warm_up_rises_to_the_full_rate(decay):
    config = dataclasses.replace(OptimConfig(warmup_epochs=2), decay=decay)
    factors = rates(config, 10, (0, 1, 2))
    assert 0 < factors[0] < 0.001
    assert factors[1] == pytest.approx(0.5, abs=0.001)
    assert factors[2] == pytest.approx(1, abs=0.02)  # tanh has begun to fall at its warm-up's end


TIMMS = {
    "constant": {},
    "poly": {},
    "tanh": {},
    "wsd": {"decay_epochs": 0.5},
    "rsqrt": {},
    "cosine": {"min_lr": 0.25},
    "step": {"decay_epochs": 2.5, "noise": 0.5},
}


@pytest.mark.parametrize("decay", TIMMS)
def test_other_courses_are_those_that_timm_gives_an_optimiser(decay):
    """At any step, whichever was asked for before, as a resumed run asks."""
    config = OptimConfig(decay=decay, decay_options=TIMMS[decay], warmup_epochs=1, factor=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3.0)
    schedule, _ = create_scheduler_v2(
        optimizer,
        decay,
        **{"decay_epochs": None} | TIMMS[decay] | {"min_lr": 3 * TIMMS[decay].get("min_lr", 0)},
        num_epochs=10,
        warmup_epochs=1,
        warmup_lr=3e-5,
        decay_rate=0.5,
        step_on_epochs=False,
        updates_per_epoch=100,
    )
    course = learning_rate_course(config, epochs=10, steps_per_epoch=100)
    for step in (999, 0, 50, 100, 101, 550, 700):
        schedule.step_update(step)
        assert 3 * course(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def small_model():
    return create_model("vit_tiny_patch16_224", 3, image_size=32, depth=2, reduced_channels=8)


def settings_of(optimizer):
    """(rate, weight decay) of each parameter."""
    return {
        id(parameter): (group["lr"] * group.get("lr_scale", 1), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


OPTIMIZERS = {
    "sgd": {"name": "sgd", "nesterov": True},
    "adamw": {"name": "adamw", "options": {"betas": [0.9, 0.95]}},
    "lamb": {"name": "lamb", "weight_decay": 0.0},
    "lion": {"name": "lion", "layer_decay": 0.7},
    "muon": {"name": "muon", "layer_decay": 0.7, "weight_decay": 0.05},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_is_timms(name):
    config = OptimConfig(**OPTIMIZERS[name], decay_norm_and_bias=False)
    model = small_model()
    found = make_optimizer(model, config)
    options = {key: tuple(value) for key, value in config.options.items()}
    reference = create_optimizer_v2(
        model,
        name,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **options,
    )
    assert type(found) is type(reference)
    wanted = settings_of(reference)
    assert settings_of(found) == {key: pytest.approx(value) for key, value in wanted.items()}
    assert {k: found.defaults[k] for k in options} == options
    assert len(settings_of(found)) == len(list(model.parameters()))
    names = [group["name"] for group in found.param_groups]
    assert len(set(names)) == len(names)  # Lightning's monitor of rates refuses others


def test_the_default_optimiser_is_pytorchs_with_two_groups():
    """The recipes' and that of earlier runs, whose states are loaded into it."""
    model = small_model()
    config = OptimConfig(classifier_multiplier=5, weight_decay=0.01)
    found = make_optimizer(model, config)
    groups = model.parameter_groups(config.learning_rate, 5)
    reference = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
    assert type(found) is torch.optim.SGD
    assert found.state_dict() == reference.state_dict()
    for one, other in zip(found.param_groups, reference.param_groups, strict=True):
        assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


def test_layers_and_the_classifier_have_their_rates():
    model = small_model()
    config = OptimConfig(name="adamw", layer_decay=0.5, classifier_multiplier=4)
    rate = {
        key: value[0] / 0.05 for key, value in settings_of(make_optimizer(model, config)).items()
    }
    blocks = [rate[id(block.norm1.weight)] for block in model.backbone.blocks]
    assert blocks[1] == pytest.approx(2 * blocks[0])
    assert rate[id(model.pool.reduction[0].weight)] == pytest.approx(1)
    assert rate[id(model.classifier.weight)] == pytest.approx(4)


REFUSED = {
    "unknown": ({"name": "adamww"}, r"unknown optim.name 'adamww'; did you mean 'adamw'\?"),
    "second order": ({"name": "adahessian"}, "'adahessian' cannot be used here"),
    "momentum": ({"name": "adamw", "momentum": 0.5}, "optim.momentum 0.5 has no effect on adamw"),
    "option": ({"name": "lion", "options": {"beta": 1}}, "^unknown option optim.options.beta;"),
    "value": ({"name": "adamw", "options": {"betas": [0.9, 2.0]}}, "timm cannot make optim.name"),
    "device": ({"name": "fusedadam"}, "timm cannot make optim.name 'fusedadam'"),
    "course": ({"decay_options": {"min_lrr": 1}}, r"decay_options.min_lrr; did you mean min_lr\?"),
    "longer": ({"decay_options": {"cycle_limit": 2}}, "unknown option optim.decay_options.cycle_l"),
    "warm-up": ({"decay": "wsd", "warmup_epochs": 9}, "timm cannot make optim.decay 'wsd'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimisers_and_courses_that_cannot_be_had_are_refused(name):
    options, message = REFUSED[name]
    config = OptimConfig(**options)

    def prepare():
        check_optimizer(config)
        make_optimizer(small_model(), config)
        learning_rate_course(config, epochs=2, steps_per_epoch=3)

    with pytest.raises(ValueError, match=message):
        prepare()


WHOLE = [
    {"weight_average": 0.9},
    {"layer_decay": 0.7},
    {"decay_norm_and_bias": False},
    {"name": "lamb"},
    {"reduction_steps": ("nog",)},
]


@pytest.mark.parametrize("optim", WHOLE, ids=str)
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(optim):
    with pytest.raises(ValueError, match=r"whole weights in each process.*use ddp"):
        RunConfig(optim=OptimConfig(**optim), train=TrainConfig(strategy="fsdp"))
