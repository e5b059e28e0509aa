"""Classes of instructions, for counts of what a kernel executes."""

from __future__ import annotations

NAMED = {
    "mma": "tensor", "wgmma": "tensor", "ldmatrix": "ldmatrix", "stmatrix": "stmatrix", "movmatrix": "movmatrix",
    "shfl": "shuffle", "vote": "vote", "redux": "vote", "match": "vote", "elect": "vote",
    "mbarrier": "mbarrier", "cp": "copy",
    "div": "division", "rem": "division", "bra": "branch", "call": "branch", "ret": "branch", "exit": "branch",
    "bar": "barrier", "barrier": "barrier", "setmaxnreg": "barrier", "fence": "fence", "membar": "fence",
    "cvt": "conversion",
    "mov": "move", "cvta": "move", "atom": "atomic", "red": "atomic",
}  # fmt: skip
SPECIAL = ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")
SPACES = ("shared", "global", "param", "local", "const")


def class_of(opcode: str) -> str:
    """The class of an opcode with its modifiers. Special functions are those of the multi-function unit."""
    name, *modifiers = opcode.split(".")
    if name in ("ld", "st"):
        space = next((s for s in SPACES if any(m.startswith(s) for m in modifiers)), "generic")
        return f"{name}.{space}"
    if name in SPECIAL or (name == "div" and "approx" in modifiers):
        return "special function"
    if name in NAMED:
        return NAMED[name]
    return {"f32": "fp32", "f64": "fp64"}.get(modifiers[-1] if modifiers else "", "integer")
