"""Spikes: steps whose loss stands far above those of the steps before them.

The measure is robust: the median of the earlier losses and the median distance from it, so that a few odd
steps move neither. The gradient's norm is not looked at: its distribution has a long tail in a healthy run,
and clipping has taken the size out of it already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from launch.progress import Progress
from launch.recipe_training import Spikes

_NORMAL = 1.4826
"""Of a normal distribution, the standard deviation in units of the median distance from the median."""
_LEAST_SHARE = 1e-3
"""Of the median: a smaller deviation is that of a loss that stands still, where anything would be a spike."""


@dataclass(frozen=True)
class Spike:
    """A loss that stands out.

    Attributes:
        usual: the median of the losses before it.
        deviation: their robust standard deviation.
    """

    loss: float
    usual: float
    deviation: float

    @property
    def num_sigmas(self) -> float:
        """How far it stands out."""
        return (self.loss - self.usual) / self.deviation


def find_spike(losses: Sequence[float], loss: float, wanted: Spikes) -> Spike | None:
    """Whether a loss is a spike after those of the steps before it, oldest first; the last ones count.

    With fewer than half a window of them nothing is.
    """
    window = np.asarray(losses[-wanted.window :], np.float64)
    if len(window) < wanted.window // 2:
        return None
    usual = float(np.median(window))
    deviation = max(_NORMAL * float(np.median(np.abs(window - usual))), _LEAST_SHARE * abs(usual))
    is_spike = loss - usual > wanted.sigmas * deviation
    return Spike(loss, usual, deviation) if is_spike else None


def enter_loss(progress: Progress, loss: float, is_spike: bool, wanted: Spikes) -> Progress:
    """The progress with a step's loss among those that later ones are held against, unless it is a spike.

    Half a window of spikes in a row is no jump but another level: the window starts anew from there.
    """
    if not is_spike:
        kept = (*progress.losses, loss)[-wanted.window :]
        return replace(progress, losses=kept, num_spikes_in_a_row=0)
    num_in_a_row = progress.num_spikes_in_a_row + 1
    if num_in_a_row >= wanted.window // 2:
        return replace(progress, losses=(), num_spikes_in_a_row=0)
    return replace(progress, num_spikes_in_a_row=num_in_a_row)
