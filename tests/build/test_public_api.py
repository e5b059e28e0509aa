"""Nobody's import or call breaks unseen: the public objects and their parameters are those of public_api.txt."""

from __future__ import annotations

import pytest

from tests.build import public_api

RENEW = "if that is meant: python tests/build/public_api.py, and a line in CHANGELOG.md"
Api = dict[str, dict[str, str]]


def differences(written: Api, found: Api) -> str:
    """One line that says what differs, or nothing. A module that cannot be imported here is passed over."""
    old = {name: rest for module, names in written.items() if module in found for name, rest in names.items()}
    new = {name: rest for names in found.values() for name, rest in names.items()}
    both = old.keys() & new.keys()
    lines = [f"removed {name}" for name in old.keys() - both]
    lines += [f"added {name}" for name in new.keys() - both]
    lines += [f"changed {name}: {old[name]} -> {new[name]}" for name in both if old[name] != new[name]]
    return "; ".join(sorted(lines))


def test_nothing_public_changes_unseen() -> None:
    if found := differences(public_api.read(), public_api.public_api()):
        pytest.fail(f"{found} ({RENEW})", pytrace=False)


def test_differences_are_seen() -> None:
    written = {"m": {"m.a": "(x)", "m.b": "(x, y=1)"}, "not installed": {"n.c": "(x)"}}
    assert not differences(written, {"m": dict(written["m"])})
    assert differences(written, {"m": {"m.a": "(x)"}}) == "removed m.b"
    assert differences(written, {"m": {**written["m"], "m.d": "value"}}) == "added m.d"
    assert differences(written, {"m": {"m.a": "(x, z)", "m.b": "(x, y=1)"}}) == "changed m.a: (x) -> (x, z)"


def test_signatures_are_seen() -> None:
    """What the file holds of a class: its constructor and the methods that this package gives it."""
    lines = public_api.read()["xlstm_cuda.nn"]
    assert lines["xlstm_cuda.nn.LSTM"].startswith("class (input_size, hidden_size, num_layers=1")
    assert "xlstm_cuda.nn.LSTM.forward" in lines
    assert "xlstm_cuda.nn.LSTM.parameters" not in lines
