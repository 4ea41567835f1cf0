"""The rules of a network's head, which the library and the options of its trainings share."""


def check_head(
    *,
    method: object,
    reduced_channels: object,
    hidden_features: object,
    gap_reduction: bool,
    drop_rate: float,
    option: str = "{}",
) -> None:
    """Refuse a head that cannot be built.

    Args:
        method: the pooling.
        reduced_channels: as for `create_model`, like all that follow.
        hidden_features: likewise.
        gap_reduction: likewise.
        drop_rate: likewise.
        option: how one of these is called in messages, with its name for the braces.

    Raises:
        ValueError: one that is out of its range, or that the method has not.
    """
    pooling = getattr(method, "name", method)
    gap = pooling == "gap"
    rules = {
        "reduced_channels": (
            reduced_channels,
            reduced_channels in (None, "auto") or _is_count(reduced_channels),
            "at least 1, auto or null (None)",
        ),
        "hidden_features": (
            hidden_features,
            (hidden_features == "matched" and gap)
            or hidden_features is None
            or _is_count(hidden_features),
            f"at least 1, null (None), or matched with method gap (here {pooling})",
        ),
        "gap_reduction": (
            gap_reduction,
            gap or not gap_reduction,
            f"false, or true with method gap (here {pooling}, whose reduction is reduced_channels)",
        ),
        "drop_rate": (drop_rate, 0 <= drop_rate < 1, "in [0, 1)"),
    }
    for name, (value, right, requirement) in rules.items():
        if not right:
            raise ValueError(f"{option.format(name)} must be {requirement}, not {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1
