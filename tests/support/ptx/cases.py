"""Every case."""

from __future__ import annotations

from .approximate import approximations
from .case import Case
from .conversions import conversions
from .floating import arithmetic_of_floats, comparisons
from .integers import integers, predicates
from .memory import memory
from .warps import warps

CASES: list[Case] = [
    *integers(),
    *predicates(),
    *comparisons(),
    *arithmetic_of_floats(),
    *approximations(),
    *conversions(),
    *warps(),
    *memory(),
]
