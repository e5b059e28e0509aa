"""All implementations by name: the library's own, and those of its peers."""

from __future__ import annotations

from . import ours, peers
from .calls import Implementation

OURS = ("cpu", "cuda")  # what the others are compared with in reports

IMPLEMENTATIONS: dict[str, Implementation] = {
    impl.name: impl for impl in (*ours.IMPLEMENTATIONS, *peers.implementations())
}
