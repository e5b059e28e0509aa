"""How the recurrent scans on CUDA devices are cut into blocks (csrc/cuda/recurrent/plan.h)."""

from __future__ import annotations

import itertools
import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from xlstm_cuda import _ops

pytestmark = pytest.mark.skipif(not _ops.available(_ops.SIMT_NAMESPACE), reason="make simt builds it")

ROWS = 8  # of a batch tile
STEPS = 16  # fragments of weights that a warp keeps
DEPTH = {"bf16": 16, "f16": 16, "f32": 8, "f64": 4}  # columns of R in one of them
MOST_TILES = {"block": 2, "cluster": 2, "grid": 8}


class Device(NamedTuple):
    compute_capability: int
    multiprocessors: int
    max_cluster: int


H200, A100, SMALL = Device(90, 132, 16), Device(80, 108, 1), Device(90, 7, 8)


class Plan(NamedTuple):
    variant: str
    units: int
    blocks: int
    teams: int
    tiles: int
    rows: int = ROWS
    rounds: int = 1


LAUNCH = Plan("launch", 0, 0, 0, 0)


def plans(
    B: int, H: int, D: int, dtype: str = "bf16", device: Device = H200, request: str = "", backward: bool = False
) -> list[Plan]:
    lines = _ops.library(_ops.SIMT_NAMESPACE).recurrent_plans(B, H, D, dtype, *device, backward, request).splitlines()
    return [Plan(variant, *map(int, numbers)) for variant, *numbers in map(str.split, lines)]


def cuts(H: int, D: int, dtype: str = "bf16", device: Device = H200) -> list[tuple[str, int, int]]:
    return [plan[:3] for plan in plans(1, H, D, dtype, device)[:-1]]


@pytest.mark.parametrize("H", [1, 4])
@pytest.mark.parametrize(
    ("D", "dtype", "expected"),
    [
        (1, "bf16", [("block", 64, 1)]),
        (64, "f16", [("block", 64, 1)]),
        (64, "f64", [("block", 64, 1)]),
        (65, "f64", []),
        (128, "bf16", [("cluster", 64, 2), ("block", 128, 1), ("grid", 64, 2)]),
        (128, "f32", [("cluster", 64, 2), ("grid", 64, 2)]),
        (129, "f32", [("cluster", 32, 5), ("grid", 32, 5)]),
        (256, "f32", [("cluster", 32, 8), ("grid", 32, 8)]),
        (256, "bf16", [("cluster", 64, 4), ("grid", 64, 4)]),
        (257, "bf16", [("cluster", 32, 9), ("grid", 32, 9)]),
        (512, "bf16", [("cluster", 32, 16), ("grid", 32, 16)]),
        (512, "f32", [("grid", 16, 32)]),
        (513, "f32", []),
        (1025, "bf16", []),
    ],
)
def test_cuts(D: int, dtype: str, expected: list[tuple[str, int, int]], H: int) -> None:
    assert cuts(H, D, dtype) == expected


MEASURED = json.loads((ROOT / "bench" / "results" / "h200-2026-11-29" / "scans.json").read_text())["steps"]
GRID, MORE_BLOCKS = 1.25, 1.15  # what they have to be faster by
CLUSTERS = 7  # of 16 blocks on an H200


def measured(plan: Plan, direction: str) -> float:
    """Nanoseconds of a step of one batch tile, of the shortest team with these units that is as long as the plan's."""
    teams = [x for x in MEASURED if (x["variant"], x["units"]) == plan[:2] and x["blocks"] >= plan.blocks]
    return float(min(teams, key=lambda x: int(x["blocks"]))[direction])


def expected_time(plan: Plan, H: int, direction: str) -> float:
    """Of a step of all batch tiles."""
    at_once = CLUSTERS * (16 // plan.blocks) if plan.variant == "cluster" else H200.multiprocessors // plan.blocks
    return -(-plan.teams * H // at_once) * plan.tiles * measured(plan, direction)


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("D", [16, 64, 65, 100, 128, 192, 256, 320, 512, 768, 1024])
def test_the_plan_is_what_was_measured_to_be_fastest(D: int, direction: str) -> None:
    def cost(plan: Plan) -> float:
        return expected_time(plan, H, direction) * (GRID if plan.variant == "grid" else 1)

    for B, H in itertools.product((1, 8, 16, 17, 64, 128, 256, 1000), (1, 2, 3, 4, 6, 12, 16)):
        chosen, *others = plans(B, H, D, backward=direction == "bwd")
        for units in (16, 32, 64) if D > 64 else ():
            others += plans(B, H, D, request=f"units={units}", backward=direction == "bwd")
        fastest = min((cost(plan) for plan in [chosen, *others] if plan != LAUNCH), default=None)
        if fastest is None:
            assert chosen == LAUNCH
        else:
            assert cost(chosen) <= MORE_BLOCKS * fastest, (B, H, chosen)


def test_two_blocks_for_a_head_that_one_could_hold() -> None:
    """Where there is room for them. Else one block, which takes less of the device."""
    assert plans(16, 6, 128)[0] == Plan("cluster", 64, 2, 8, 1, rows=2)
    assert plans(1024, 6, 128)[0].variant == "block"
    assert plans(16, 6, 128, device=A100)[0] == Plan("block", 128, 1, 8, 1, rows=2)


def test_a_grid_must_be_there_at_once() -> None:
    assert plans(8, 1, 1024) == [Plan("grid", 16, 64, 2, 1, rows=4), LAUNCH]
    assert plans(8, 2, 1024) == [Plan("grid", 16, 64, 1, 1), LAUNCH]
    assert plans(8, 2, 768) == [Plan("grid", 16, 48, 1, 1), LAUNCH]
    assert cuts(1, 1024, device=H200._replace(multiprocessors=63)) == []


def test_heads_that_find_no_room_come_in_another_launch() -> None:
    """Unless a launch per step is faster by the model."""
    assert plans(8, 3, 768) == [Plan("grid", 16, 48, 1, 1, rounds=2), LAUNCH]
    assert plans(1, 5, 1024) == [Plan("grid", 16, 64, 1, 1, rows=2, rounds=3), LAUNCH]
    assert plans(16, 8, 512, device=A100) == [Plan("grid", 32, 16, 1, 2, rounds=2), LAUNCH]
    assert plans(129, 1, 1024) == [LAUNCH]
    assert plans(129, 1, 1024, request="grid") == [Plan("grid", 16, 64, 3, 6, rounds=2)]


def test_devices() -> None:
    assert cuts(1, 256, device=A100) == [("grid", 64, 4)]  # no clusters before 9.0
    assert cuts(1, 512, device=H200._replace(max_cluster=8)) == [("grid", 32, 16)]  # only the portable size
    assert cuts(1, 512, device=SMALL) == []
    assert cuts(1, 256, device=SMALL) == [("cluster", 64, 4), ("grid", 64, 4)]


@pytest.mark.parametrize(
    ("B", "H", "D", "expected"),
    [
        # Small batches: a team per tile, so that all tiles advance at once. Of few rows where there is room.
        (1, 1, 64, ("block", 1, 1)),
        (64, 4, 64, ("block", 32, 1)),
        (64, 4, 256, ("grid", 8, 1)),  # there is no room for 32 clusters of 4 at once
        # More tiles than the device has room for: two in a team, then teams one after the other.
        (256, 1, 512, ("cluster", 16, 2)),
        (256, 8, 512, ("cluster", 16, 2)),
        (8 * 132 * 2, 1, 64, ("block", 132, 2)),
        (8 * 132 * 5, 1, 64, ("block", 330, 2)),
        # A grid cannot wait for its turn.
        (64, 1, 1024, ("grid", 2, 4)),
        (128, 1, 1024, ("launch", 0, 0)),
        (129, 1, 1024, ("launch", 0, 0)),
    ],
)
def test_teams(B: int, H: int, D: int, expected: tuple[str, int, int]) -> None:
    first = plans(B, H, D)[0]
    assert (first.variant, first.teams, first.tiles) == expected


@pytest.mark.parametrize(
    ("B", "H", "expected"),
    [
        (16, 12, Plan("block", 64, 1, 8, 1, rows=2)),  # room for 11 teams of a head
        (17, 12, Plan("block", 64, 1, 9, 1, rows=2)),
        (9, 66, Plan("block", 64, 1, 2, 1, rows=6)),  # as even as can be
        (9, 67, Plan("block", 64, 1, 1, 2)),  # no room for a second team: whole tiles
        (3, 200, Plan("block", 64, 1, 1, 1, rows=4)),
    ],
)
def test_tiles_have_few_rows_where_there_is_room(B: int, H: int, expected: Plan) -> None:
    assert plans(B, H, 64)[0] == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("cluster", [Plan("cluster", 64, 4, 8, 1, rows=2)]),
        ("cluster units=32", [Plan("cluster", 32, 8, 8, 1, rows=2)]),
        ("cluster teams=2", [Plan("cluster", 64, 4, 2, 1)]),
        ("units=32 teams=1", [Plan("cluster", 32, 8, 1, 2), Plan("grid", 32, 8, 1, 2), LAUNCH]),
        ("grid units=16", [Plan("grid", 16, 16, 8, 1, rows=2)]),
        ("grid units=16 teams=6", [Plan("grid", 16, 16, 4, 1, rows=4)]),
        ("grid units=16 teams=15", [Plan("grid", 16, 16, 8, 1, rows=2)]),  # no more than there are tiles of 2 rows
        ("grid units=16 teams=99", [Plan("grid", 16, 16, 8, 1, rows=2)]),
        ("launch", [LAUNCH]),
        ("block", []),
        ("cluster units=16", []),  # no such kernel
    ],
)
def test_what_is_asked_for(request_: str, expected: list[Plan]) -> None:
    assert plans(16, 1, 256, request=request_) == expected


def test_heads_that_fit_a_block_in_several() -> None:
    assert plans(8, 1, 64, request="cluster") == []
    assert plans(8, 1, 64, request="cluster units=32 teams=1") == [Plan("cluster", 32, 2, 1, 1)]
    assert plans(8, 1, 32, request="cluster units=32 teams=1") == [Plan("cluster", 32, 1, 1, 1)]


def test_no_cluster_of_one_block_where_there_are_none() -> None:
    """The kernels for clusters have no body there."""
    assert plans(8, 1, 32, device=A100, request="cluster units=32") == []
    assert plans(8, 1, 32, device=A100, request="units=32 teams=1") == [Plan("grid", 32, 1, 1, 1), LAUNCH]


@pytest.mark.parametrize("request_", ["blocks", "units=", "units=x", "units=1234567", "teams=-1", "grid,units=16"])
def test_requests_that_say_nothing(request_: str) -> None:
    with pytest.raises(RuntimeError, match="block, cluster, grid, launch, units=N"):
        plans(8, 1, 64, request=request_)


def test_a_request_holds_until_the_next_one() -> None:
    use = _ops.library(_ops.SIMT_NAMESPACE).recurrent_variant
    assert use("cluster units=32 teams=4") == ""
    assert use("units=16") == "cluster units=32 teams=4"
    assert use("") == "units=16"
    assert use("") == ""


def test_empty_batch() -> None:
    assert plans(0, 1, 64) == []


sizes = st.one_of(st.integers(1, 40), st.integers(1, 3000), st.just(2**33))


@given(sizes, sizes, sizes, st.sampled_from(sorted(DEPTH)), st.sampled_from([H200, A100, SMALL]))
def test_every_plan_fits(B: int, H: int, D: int, dtype: str, device: Device) -> None:
    found = plans(B, H, D, dtype, device)
    assert found[-1] == LAUNCH and LAUNCH not in found[:-1]
    for variant, units, blocks, teams, tiles, rows, rounds in found[:-1]:
        batch_tiles = -(-B // rows)
        assert 1 <= rows <= ROWS and (rows == ROWS or tiles == 1)
        assert (blocks - 1) * units < D <= blocks * units
        assert 1 <= teams <= batch_tiles and 1 <= tiles <= MOST_TILES[variant]
        assert teams * tiles >= batch_tiles > teams * (tiles - 1)
        # Registers: 8 units times a whole row are a warp's 16 fragments; a wide block has half as many for each warp.
        most = 128 if (variant, units) == ("block", 128) else STEPS * DEPTH[dtype] * 64 // units
        assert most >= D
        if variant == "block":
            assert blocks == 1
        elif variant == "cluster":
            assert blocks <= device.max_cluster
        else:
            assert -(-H * teams // rounds) * blocks <= device.multiprocessors
        assert variant == "grid" or rounds == 1
