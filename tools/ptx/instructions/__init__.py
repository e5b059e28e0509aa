"""Instructions by what they do; importing this package fills the table of handlers."""

from . import arithmetic, asynchronous, collective, memory, tensor  # noqa: F401
from .table import translate

__all__ = ["translate"]
