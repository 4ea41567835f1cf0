"""Which pooling method trains in which epoch: one method, or the hybrid protocol's switches."""

from dataclasses import dataclass

from covpool.linalg.methods import METHODS, Method
from covpool.poolings import Pooling, check_pooling, method_or_pooling
from covpool.train.config import ModelConfig, RunConfig


@dataclass(frozen=True)
class MethodSchedule:
    """Switches (first epoch, pooling's name, its row), rising from epoch 0."""

    switches: tuple[tuple[int, str, Method | Pooling], ...]

    def name_at(self, epoch: int) -> str:
        """The name of the pooling that trains in that epoch."""
        return self._at(epoch)[1]

    def method_at(self, epoch: int) -> Method | Pooling:
        """The row that trains in that epoch, with its constants: a method, or another pooling."""
        return self._at(epoch)[2]

    def _at(self, epoch: int) -> tuple[int, str, Method | Pooling]:
        return [switch for switch in self.switches if switch[0] <= epoch][-1]

    def switches_to(self, epoch: int) -> str | None:
        """The method that takes over at the beginning of that epoch, if one does."""
        return next((name for first, name, _ in self.switches[1:] if first == epoch), None)

    @property
    def label(self) -> str:
        """The poolings' names in order, for file names."""
        return "+".join(name for _, name, _ in self.switches)

    def __str__(self) -> str:
        if len(self.switches) == 1:
            return self.switches[0][1]
        return ",".join(f"{epoch}:{name}" for epoch, name, _ in self.switches)


def method_schedule(config: RunConfig) -> MethodSchedule:
    """The schedule of a configuration, every name and constant checked.

    A constant goes to each method of the schedule that has one of its name.

    Raises:
        ValueError: an unknown pooling or constant, a schedule that cannot be read or does not
            rise, a first entry that contradicts `method`, or gap beside another method.
    """
    model = config.model
    names = _switches(config)
    others = [name for _, name in names if name not in METHODS]
    if others and len(names) > 1:
        option = "schedule" if model.hybrid is None else "hybrid"
        raise ValueError(
            f"model.{option} {getattr(model, option)!r} switches between {others[0]} and another "
            "pooling, whose classifiers differ; switch between covariance methods"
        )
    rows = {name: method_or_pooling(name) for _, name in names}
    for constant in model.constants:
        if not any(constant in row.constants for row in rows.values()):
            known = sorted({key for row in rows.values() for key in row.constants})
            raise ValueError(
                f"model.constants.{constant}: {', '.join(rows)} has no such constant; "
                f"its constants: {', '.join(known) or 'none'}"
            )
    with_constants = {
        name: row.replace(**{k: v for k, v in model.constants.items() if k in row.constants})
        for name, row in rows.items()
    }
    return MethodSchedule(tuple((epoch, name, with_constants[name]) for epoch, name in names))


def _switches(run: RunConfig) -> list[tuple[int, str]]:
    config = run.model
    check_pooling(config.method)
    if config.hybrid is not None:
        return [(0, config.method), (run.optim.milestones[-1], check_pooling(config.hybrid))]
    if config.schedule is None:
        return [(0, config.method)]
    entries = []
    for text in config.schedule.split(","):
        epoch, colon, name = text.strip().partition(":")
        if not colon or not epoch.strip().isdecimal():
            raise ValueError(
                f"model.schedule {config.schedule!r}: cannot read {text!r}; write "
                "epoch:method,epoch:method, as in 0:isqrt-cov,20:svd-pade"
            )
        entries.append((int(epoch), check_pooling(name.strip())))
    epochs = [epoch for epoch, _ in entries]
    if epochs != sorted(set(epochs)):
        raise ValueError(f"model.schedule {config.schedule!r}: epochs must rise")
    if epochs[0] > 0:
        entries.insert(0, (0, config.method))
    elif entries[0][1] != config.method and config.method != ModelConfig.method:
        raise ValueError(
            f"model.schedule {config.schedule!r} begins with {entries[0][1]!r} but model.method is "
            f"{config.method!r}; give one of the two"
        )
    return entries
