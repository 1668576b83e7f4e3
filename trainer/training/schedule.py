"""The learning rate of every step: linear warm-up, hold at the peak, cosine down to the floor.

    peak        ____________
               /            \\__
              /                \\__
    floor    /                    \\___
            | warm-up | hold | decay |

One schedule spans the whole run. It is a pure function of the step, so a resumed run cannot restart it.
"""

from __future__ import annotations

import math

from trainer.config import OptimConfig


def schedule_edges(total_steps: int, warmup_ratio: float, hold_ratio: float) -> tuple[int, int]:
    """Return (first hold step, first decay step); an edge equal to `total_steps` means the phase never comes.

    Edges are rounded, not lengths, so that rounding does not add up. The decay never starts before step 1: every
    run, however short and without warm-up or hold, has one step at the peak to come down from.

    Raises ValueError for a run without steps, a negative ratio, or ratios that sum to more than 1.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, not {total_steps}")
    if not (warmup_ratio >= 0 and hold_ratio >= 0 and warmup_ratio + hold_ratio <= 1):
        raise ValueError(f"warmup_ratio {warmup_ratio} and hold_ratio {hold_ratio} must be >= 0 and sum to at most 1")
    first_hold = round(warmup_ratio * total_steps)
    first_decay = max(round((warmup_ratio + hold_ratio) * total_steps), 1)
    return first_hold, first_decay


def learning_rate(
    step: int, *, total_steps: int, peak: float, floor: float, warmup_ratio: float, hold_ratio: float
) -> float:
    """Return the learning rate with which update `step` (0 .. total_steps - 1) is made.

    Warm-up over W steps is `peak * (step + 1) / W`: no update is wasted on a rate of 0, and the last one is at the
    peak. The n steps of decay count k = 1 .. n from the last step at the peak (k = 0) with
    `floor + (peak - floor) * (1 + cos(pi * k / n)) / 2`: the last step of the run is exactly at the floor.
    Without a decay (a run of one step, or ratios that sum to 1) the run ends at the peak.

    Raises ValueError for a step outside the run, for rates other than 0 <= floor <= peak, and as `schedule_edges`.
    """
    first_hold, first_decay = schedule_edges(total_steps, warmup_ratio, hold_ratio)
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the run of {total_steps} steps")
    if not 0 <= floor <= peak < math.inf:
        raise ValueError(f"the rates must satisfy 0 <= floor <= peak, not floor {floor} and peak {peak}")
    if step < first_hold:
        return float(peak * ((step + 1) / first_hold))
    if step < first_decay:
        return float(peak)
    progress = (step - first_decay + 1) / (total_steps - first_decay)
    return float(floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2)


def learning_rates(config: OptimConfig, steps: int) -> list[float]:
    """The learning rate of every step of a run."""
    return [
        learning_rate(
            step,
            total_steps=steps,
            peak=config.lr,
            floor=config.floor_lr,
            warmup_ratio=config.warmup_ratio,
            hold_ratio=config.hold_ratio,
        )
        for step in range(steps)
    ]
