"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository, or of the folder that tests/ was copied into
