"""All experiments, by name."""

from __future__ import annotations

from .ablation import Ablation
from .comparison import LongArithmetic, LongParity, Permutations
from .control import Control
from .digits import Digits
from .digits_2d import Digits2D
from .domains import Domains
from .extrapolation import Extrapolation
from .forecasting import Forecasting
from .forecasting_mixer import ForecastingMixer
from .ladder import Ladder
from .listops import ListOps
from .nearest_neighbor import NearestNeighbor
from .recall import Recall
from .speech import SpeechClassification
from .state_tracking import CycleNavigation, EvenPairs, ModularArithmetic, Parity
from .task import Task
from .translation import Translation

_ALL: tuple[type[Task], ...] = (
    Parity,
    EvenPairs,
    CycleNavigation,
    ModularArithmetic,
    LongParity,
    Permutations,
    LongArithmetic,
    Recall,
    NearestNeighbor,
    Ablation,
    Extrapolation,
    Ladder,
    Domains,
    ListOps,
    Digits,
    Digits2D,
    Forecasting,
    ForecastingMixer,
    SpeechClassification,
    Translation,
    Control,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}
