"""Seconds, several candidates side by side (chapters 10 and 11)."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch

from densenet_from_scratch.arguments import check_count


def seconds_side_by_side(
    runs: Mapping[str, Callable[[], Any]], rounds: int = 10
) -> dict[str, list[float]]:
    """Time functions against each other: in every round each of them runs once, in turn.

    So whatever slows the machine down for a while slows all of them. Work on a GPU is waited for.
    One more round comes first and is not counted.

    Args:
        runs: what to time, by name.
        rounds: how often.

    Returns:
        The seconds of every round, by name.

    Raises:
        ValueError: ``rounds`` is not a positive integer.
    """
    check_count("rounds", rounds)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            started = perf_counter()
            run()
            wait()
            if round_ > 0:
                seconds[name].append(perf_counter() - started)
    return seconds
