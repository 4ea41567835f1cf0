"""The optimiser and the course of its learning rate, by timm's factories."""

import difflib
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim._optim_factory import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler.scheduler_factory import create_scheduler_v2

from covpool.data.keywords import keywords, made_by_timm
from covpool.models import CovPoolModel
from covpool.train.config import OptimConfig
from covpool.train.reduction_step import reduction_weight

UNFIT: Mapping[str, str] = {
    "adahessian": "it needs the gradient's own gradient",
    **dict.fromkeys(
        ("kron", "kronc", "kronw"),
        "it draws random numbers that no checkpoint holds, so that no run could be resumed exactly",
    ),
}
"""Optimisers of timm's that do not go together with how runs are trained here, and why."""

OURS_OF_OPTIMIZER = ("params", "lr", "weight_decay", "momentum", "nesterov")
OURS_OF_SCHEDULE = (
    *("optimizer", "sched", "num_epochs", "warmup_epochs", "decay_milestones"),
    *("step_on_epochs", "updates_per_epoch"),
    # These would make the run longer than train.epochs, or need figures of its evaluations.
    *("warmup_prefix", "cooldown_epochs", "cycle_mul", "cycle_decay", "cycle_limit"),
    *("patience_epochs", "plateau_mode"),
)
"""What options of the configuration say already."""


def check_optimizer(config: OptimConfig) -> None:
    """Look up the optimiser.

    Raises:
        ValueError: an optimiser that timm does not list, or that runs here cannot be trained with;
            a momentum that it does not have.
    """
    name = config.name
    listed = [str(name) for name in list_optimizers()]
    if name not in listed:
        near = difflib.get_close_matches(name, listed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown optim.name {name!r}; {hint}Choose a name that timm.optim.list_optimizers() "
            "gives, such as sgd, adamw, lamb or lion"
        )
    if name in UNFIT:
        raise ValueError(f"optim.name {name!r} cannot be used here: {UNFIT[name]}")
    if not get_optimizer_info(name).has_momentum and config.momentum != OptimConfig.momentum:
        raise ValueError(
            f"optim.momentum {config.momentum} has no effect on {name}; give what it has instead "
            "as --optim.options.NAME, such as betas"
        )


def make_optimizer(model: CovPoolModel, config: OptimConfig) -> torch.optim.Optimizer:
    """The configuration's optimiser of the parameters that are not frozen.

    Raises:
        ValueError: options that the optimiser does not take, or an optimiser that this machine
            does not have.
    """
    what = f"optim.name {config.name!r} of optim.options {config.options}"
    with made_by_timm(what):
        owner = get_optimizer_class(config.name, bind_defaults=False)
    options = keywords("optim.options", config.options, owner, ours=OURS_OF_OPTIMIZER)
    if config.name == "sgd":  # which timm would give Nesterov's momentum
        options["nesterov"] = config.nesterov
    with made_by_timm(what):
        return create_optimizer_v2(
            parameter_groups(model, config),
            config.name,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **options,
        )


def parameter_groups(model: CovPoolModel, config: OptimConfig) -> list[dict[str, Any]]:
    """timm's groups of parameters, each divided into the classifier's and all others."""
    everywhere = config.decay_norm_and_bias
    shared: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "weight_decay_exclude_1d": not everywhere,
        "no_weight_decay_list": () if everywhere else model.no_weight_decay(),
    }
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, **shared)
    else:
        groups = param_groups_layer_decay(model, layer_decay=config.layer_decay, **shared)
    parts = model.parameter_groups(config.learning_rate, config.classifier_multiplier)
    if "olr" in config.reduction_steps:
        weight = reduction_weight(model)
        for part in parts:
            part["params"] = [each for each in part["params"] if each is not weight]
        parts.append({"name": "reduction", "params": [weight], "lr": config.learning_rate})
    made = []
    for number, group in enumerate(groups):
        scale = group.pop("lr_scale", 1.0)
        for part in parts:
            members = {id(parameter) for parameter in part["params"]}
            if own := [parameter for parameter in group["params"] if id(parameter) in members]:
                name = part["name"] if len(groups) == 1 else f"{part['name']} {number}"
                made.append({**group, "name": name, "params": own, "lr": part["lr"] * scale})
    return made


def learning_rate_course(
    config: OptimConfig, *, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The learning rate relative to `optim.learning_rate`, as a function of the steps taken.

    The courses step and cosine are computed here, timm's where it is given options or has the
    name alone. timm's decays by steps one step before its milestone, and rounds its cosine and its
    warm-up otherwise, so that with it neither the recipes nor runs made before could be repeated
    bit for bit.

    Raises:
        ValueError: options that timm's schedule does not take.
    """
    if config.decay in ("step", "cosine") and not config.decay_options:
        return lambda step: _factor(config, step / steps_per_epoch, epochs)
    chosen: dict[str, Any] = {
        "warmup_epochs": config.warmup_epochs,
        "decay_rate": config.factor,
    }
    chosen |= keywords(
        "optim.decay_options", config.decay_options, create_scheduler_v2, ours=OURS_OF_SCHEDULE
    )
    # timm's schedules set an optimiser's rate; this one has nothing else.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with made_by_timm(f"optim.decay {config.decay!r} of {chosen} and train.epochs {epochs}"):
        schedule: Any = create_scheduler_v2(
            stand_in,
            config.decay,
            num_epochs=epochs,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **chosen,
        )[0]
        schedule.step_update(0)

    def course(step: int) -> float:
        schedule.step_update(step)
        return stand_in.param_groups[0]["lr"]

    return course


def _factor(config: OptimConfig, epoch: float, epochs: int) -> float:
    """At a point of the run counted in epochs."""
    if epoch < config.warmup_epochs:
        return (epoch + 1e-3) / (config.warmup_epochs + 1e-3)
    if config.decay == "cosine":
        span = max(epochs - config.warmup_epochs, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - config.warmup_epochs) / span)))
    return config.factor ** bisect_right(config.milestones, math.floor(epoch))
