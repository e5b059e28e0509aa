"""tools/sass on machine code written here, with answers known by hand, and on small kernels through ptxas."""

from __future__ import annotations

from typing import Any

import pytest

from bench import machine_code
from bench.counters import CASES
from tools.ptx.parse import Module
from tools.sass.assemble import assembled, entries, program, ptx_of, single_kernel
from tools.sass.courses import Courses
from tools.sass.flow import blocks_of, loops_of
from tools.sass.listing import Control, Kernel, kernels
from tools.sass.measure import Measured, Turn, load_batches, measured
from tools.sass.model import BARRIER, BRANCH, CLUSTER_MESSAGE, LATENCY, PRODUCT_TAIL, cycles_of_courses, cycles_of_turn
from tools.sass.products import touched_too_early

NONE = 7  # no barrier


def word(stall: int = 1, write: int = NONE, read: int = NONE, waits: int = 0) -> int:
    return stall << 41 | write << 46 | read << 49 | waits << 52


def line(text: str, **control: int) -> str:
    return f"        /*0000*/   {text} ;  /* 0x{0:016x} */\n   /* 0x{word(**control):016x} */\n"


def at(number: int, file: str = "k.cu") -> str:
    return f'\t//## File "/somewhere/{file}", line {number}\n'


def kernel(*lines: str) -> Kernel:
    (found,) = kernels(".text.k:\n" + "".join(lines))
    return found


def turn_of(*lines: str, counts: dict[int, float] | None = None) -> Turn:
    """Of the only loop. counts: of the lines; without them, once in front of the loop and ten times in it."""
    code = measured(kernel(*lines), {(("k.cu", n),): float(c) for n, c in (counts or {1: 1, 2: 10}).items()})
    (turn,) = code.turns
    return turn


LOOP = (at(1), line("MOV R0, RZ", stall=3), ".L_x_0:\n", at(2))
BACK = line("@P0 BRA `(.L_x_0)", stall=5)
END = (at(1), line("EXIT", stall=5))


def test_control_words() -> None:
    control = Control.of(word(stall=11, write=2, read=0, waits=0b101001))
    assert control == Control(11, 2, 0, 0b101001)
    assert Control.of(word()) == Control(1, None, None, 0)
    # LDC R1, c[0x0][0x28] as nvdisasm prints it for sm_90a: 8 cycles, no barrier; and one that sets barrier 1
    assert Control.of(0x000FF00000000800) == Control(8, None, None, 0)
    assert Control.of(0x000E620000000800).write_barrier == 1


def test_a_listing() -> None:
    frames = '\t//## File "/a/tile.h", line 5 inlined at "/a/k.cu", line 7\n' + at(7)
    code = kernel(frames, line("@!P1 LDG.E.128 R4, desc[UR4][R2.64]", write=3), line("EXIT"))
    load = code.instructions[0]
    assert (load.guard, load.name, load.opcode) == ("@!P1", "LDG", "LDG.E.128")
    assert load.site == (("tile.h", 5), ("k.cu", 7))
    assert code.code_bytes == 32


def test_a_listing_without_control_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="k: no instructions with control words"):
        kernel("        /*0000*/   EXIT ;\n")


def test_loops() -> None:
    code = kernel(
        line("MOV R0, RZ"),  # 0
        ".L_x_1:\n",
        line("IADD3 R0, R0, 1, RZ"),  # 1
        ".L_x_2:\n",
        line("FADD R1, R1, R1"),  # 2
        line("@P1 BRA `(.L_x_2)"),
        line("@!P2 BRA `(.L_x_3)"),  # 3
        line("FMUL R1, R1, R1"),  # 4
        ".L_x_3:\n",
        line("@P0 BRA `(.L_x_1)"),  # 5
        line("EXIT"),  # 6
    )
    blocks = blocks_of(code)
    assert [block.successors for block in blocks] == [[1], [2], [2, 3], [5, 4], [5], [1, 6], []]
    outer, inner = loops_of(blocks)
    assert (outer.header, outer.blocks, outer.inner) == (1, {1, 2, 3, 4, 5}, False)
    assert (inner.header, inner.blocks, inner.inner) == (2, {2}, True)


def test_a_turn_counts_what_is_executed() -> None:
    turn = turn_of(
        *LOOP,
        line("FFMA R1, R1, R2, R3", stall=4),
        line("@P1 BRA `(.L_x_1)", stall=5),
        at(3),
        line("MUFU.EX2 R1, R1", stall=2),  # in every other turn
        line("FMUL R1, R1, R1", stall=4),
        ".L_x_1:\n",
        at(2),
        BACK,
        *END,
        counts={1: 1, 2: 10, 3: 5},
    )
    assert turn.turns == 10 and turn.executed == 4
    assert turn.instructions == {"fp32": 1.5, "control": 2, "special": 0.5}
    assert turn.stalls == 4 + 5 + (2 + 4) / 2 + 5


def test_a_line_that_was_hoisted_does_not_weigh_its_block() -> None:
    hoisted = (at(1), line("MOV R0, RZ"), at(2), line("IADD3 R9, R9, 1, RZ"), at(1), line("MOV R1, RZ"))
    code = kernel(*hoisted, ".L_x_0:\n", at(2), line("FADD R1, R1, R0"), BACK, *END)
    result = measured(code, {(("k.cu", 1),): 1.0, (("k.cu", 2),): 10.0})
    assert result.weights == [1, 10, 1] and result.executed == 3 + 20 + 1


LOADS = [line(f"LDG.E R{n}, desc[UR4][R8.64]", stall=2, write=n) for n in range(4)]


def test_loads_in_flight() -> None:
    together = turn_of(*LOOP, *LOADS, line("FADD R0, R0, R3", stall=4, waits=0b1111), BACK, *END)
    assert load_batches(together.path) == [4]
    uses = [line(f"FADD R9, R9, R{n}", stall=4, waits=1 << n) for n in range(4)]
    serial = turn_of(*LOOP, *(x for pair in zip(LOADS, uses, strict=True) for x in pair), BACK, *END)
    assert load_batches(serial.path) == [1, 1, 1, 1]
    ahead = turn_of(*LOOP, *LOADS, BACK, *END)  # used in the next turn
    assert load_batches(ahead.path) == [4]


def test_divisions_and_slow_paths() -> None:
    call = "CALL.REL.NOINC `($__internal_1_$__cuda_sm3x_div_rn_noftz_f32_slowpath)"
    integer = "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)"
    turn = turn_of(*LOOP, line("FCHK P0, R1, R2"), line(call), line(integer), BACK, *END)
    assert turn.divisions == 2
    assert turn.slow_paths == {"sm3x_div_rn_noftz_f32_slowpath": 1, "sm20_div_s64": 1}


def test_what_is_only_called_weighs_nothing() -> None:
    code = kernel(
        at(1), line("CALL.REL.NOINC `(.L_x_9)"), line("EXIT"), ".L_x_9:\n", line("FADD R1, R1, R1"), line("RET")
    )
    assert measured(code, {(("k.cu", 1),): 3.0}).executed == 6


PRODUCTS = [
    line("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8].tnspB, R24"),
    line("HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"),
]
WAIT = line("WARPGROUP.DEPBAR.LE gsb0, 0x0")


@pytest.mark.parametrize(
    ("between", "touched"),
    [
        ("FADD R60, R2, R3", False),
        ("FADD R55, R2, R3", True),  # the last of 32 sums
        ("FADD R56, R24, R3", True),
        ("MOV R7, R3", True),  # A
        ("LDS.128 R22, [R2]", True),  # R22 to R25
        ("LDS.64 R22, [R2]", False),
        ("STG.E.128 desc[UR14][R22.64], R16", False),  # an address is R22 and R23
        ("STG.E.128 desc[UR14][R56.64], R20", False),
        ("STG.E.128 desc[UR14][R56.64], R21", True),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", False),
    ],
)
def test_registers_of_products_in_flight(between: str, touched: bool) -> None:
    code = kernel(*PRODUCTS, line(between), WAIT, line("FADD R24, R24, R4"), line("EXIT"))
    assert [between in text for text in touched_too_early(code)] == [True] * touched


def test_products_in_flight_around_a_loop() -> None:
    """The next turn touches what the turn before has not waited for."""
    ok = kernel(line("FADD R24, R1, R2"), ".L_x_0:\n", *PRODUCTS, WAIT, line("FADD R24, R1, R2"), BACK, *END)
    bad = kernel(".L_x_0:\n", line("FADD R24, R1, R2"), *PRODUCTS, BACK, WAIT, *END)
    assert touched_too_early(ok) == [] and len(touched_too_early(bad)) == 1


# ---- the model ----


def test_the_model_adds_up_the_stalls_of_one_warp() -> None:
    path = turn_of(*LOOP, line("FADD R0, R0, R1", stall=4), line("FADD R0, R0, R1", stall=7), BACK, *END).path
    assert cycles_of_turn(path, warps=1) == 4 + 7 + BRANCH


def test_the_model_hides_latency_behind_other_warps() -> None:
    load = line("LDS R0, [R8]", stall=1, write=0)
    path = turn_of(*LOOP, load, line("FADD R1, R0, R0", stall=1, waits=1), BACK, *END).path
    alone, two, eight = (cycles_of_turn(path, warps) for warps in (1, 2, 8))
    assert alone == LATENCY["LDS"] + 1 + BRANCH
    assert two < 1.2 * alone and eight < 2 * alone  # each of 8 issues 3 instructions


def test_the_model_is_bound_by_a_pipe() -> None:
    path = turn_of(*LOOP, *[line(f"MUFU.EX2 R{n}, R9", stall=1, write=0) for n in range(4)], BACK, *END).path
    assert cycles_of_turn(path, warps=8) == pytest.approx(8 * 4 * 8, rel=0.02)  # 8 cycles each


def test_the_model_waits_for_products_of_a_warpgroup() -> None:
    products = [line("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0", stall=1)] * 2
    path = turn_of(*LOOP, *products, line("WARPGROUP.DEPBAR.LE gsb0, 0x0", stall=1), BACK, *END).path
    assert cycles_of_turn(path, warps=1) == pytest.approx(2 * 128 + PRODUCT_TAIL + BRANCH, abs=2)


def test_the_model_goes_on_beside_the_groups_that_are_not_awaited() -> None:
    """Two sets of operands in turn: the products of one are in flight while the other one is made."""
    product = line("HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0", stall=1)
    operands = [line(f"FADD R{n}, R2, R3", stall=4) for n in range(4, 16)]

    def of(left: str) -> float:
        wait = line(f"WARPGROUP.DEPBAR.LE gsb0, {left}", stall=1)
        return cycles_of_turn(turn_of(*LOOP, *operands, product, wait, BACK, *END).path, warps=1)

    alone = 4 * len(operands) + 64 + PRODUCT_TAIL + BRANCH
    assert of("0x0") == pytest.approx(alone, abs=3)
    assert of("0x1") == pytest.approx(alone / 2, abs=3)  # two turns in the time of one


def test_the_pipes_that_a_turn_takes() -> None:
    body = [line(text) for text in ("MUFU.EX2 R0, R9", "HMMA.16816 R4, R8, R10, R4", "FADD R0, R0, R1", "LOP3 R0, R1")]
    turn = turn_of(*LOOP, *body, BACK, *END)
    assert turn.pipes == {"special": 8, "tensor": 7, "fma": 1, "alu": 2, "issue": 5}
    assert machine_code.loop_numbers(turn, 2, cycles=None)["bound"] == ["special", 16]


def test_a_block_barrier_waits_for_all_warps() -> None:
    path = turn_of(*LOOP, line("BAR.SYNC.DEFER_BLOCKING 0x0", stall=1), BACK, *END).path
    assert cycles_of_turn(path, warps=1) == pytest.approx(BARRIER + BRANCH, abs=1)


def test_a_block_barrier_waits_for_no_other_block() -> None:
    """A long turn of one block does not hold up the short ones of another block."""
    barrier = line("BAR.SYNC.DEFER_BLOCKING 0x0", stall=1)
    short = turn_of(*LOOP, barrier, BACK, *END).path
    long = turn_of(*LOOP, *[line("FADD R0, R0, R0", stall=15)] * 20, barrier, BACK, *END).path
    together, apart = cycles_of_courses([[[short], [long]]]), cycles_of_courses([[[short]], [[long]]])
    assert together > 300 and apart < 0.7 * together


def test_a_barrier_waits_for_those_that_come_to_it() -> None:
    """A warp with another task meets two others once a turn, who meet twice more without it."""
    all_of_them, some = (line(f"BAR.SYNC.DEFER_BLOCKING {of}", stall=1) for of in ("0x0", "0x1, 0x40"))
    two = turn_of(*LOOP, some, all_of_them, some, BACK, *END).path
    one = turn_of(*LOOP, *[line("FADD R0, R0, R0", stall=10)] * 10, all_of_them, BACK, *END).path
    assert cycles_of_courses([[[two], [two]]]) == pytest.approx(3 * BARRIER + BRANCH, abs=4)
    assert cycles_of_courses([[[two], [two], [one]]]) == pytest.approx(100 + BARRIER + BRANCH, abs=10)


def test_turns_may_take_different_ways_one_after_the_other() -> None:
    ways = [turn_of(*LOOP, line("FADD R0, R0, R0", stall=n), BACK, *END).path for n in (5, 15)]
    assert cycles_of_courses([[ways]], turns=40) == pytest.approx(10 + BRANCH, abs=0.5)


PTX = """
.version 9.0
.target sm_90a
.address_size 64
.file 1 "/somewhere/k.cu"
.visible .entry k() {
  .reg .pred %p<2>;
  .reg .b32 %r<2>;
  .loc 1 1 0
  mov.u32 %r0, 0;
$L_0:
  .loc 1 2 0
  add.u32 %r0, %r0, 1;
  @%p1 bra $L_1;
  .loc 1 3 0
  add.u32 %r1, %r0, 1;
$L_1:
  .loc 1 4 0
  @%p0 bra $L_0;
  .loc 1 1 0
  ret;
}
"""


def test_the_course_of_a_warp_through_a_loop() -> None:
    """Line 3 in every other turn; one of the warps begins with it. The last turn is left out: its end is not known."""
    code = kernel(
        *(at(1), line("MOV R0, RZ"), ".L_x_0:\n", at(2), line("IADD3 R0, R0, 1, RZ"), line("@P1 BRA `(.L_x_1)")),
        *(at(3), line("FMUL R1, R1, R1"), line("FMUL R1, R1, R1"), line("FMUL R1, R1, R1")),
        *(".L_x_1:\n", at(4), line("@P0 BRA `(.L_x_0)"), at(1), line("EXIT")),
    )
    module = Module(PTX)
    with_it, without = [1, 2, 3], [1, 3]
    first, second = [0, *2 * (with_it + without), 4], [0, *2 * (without + with_it), 4]
    executions = [2, 8, 4, 8, 2]
    courses = Courses(module, module.functions[0], executions, [first, second])
    blocks = blocks_of(code)
    (loop,) = loops_of(blocks)
    found = courses.in_loop(code, blocks, loop, turns=8)
    assert [[len(path) for path in course] for course in found] == [[6, 3, 6], [3, 6, 3]]
    assert courses.in_loop(code, blocks, loop, turns=5) == []  # no block is executed as often


def test_a_message_takes_its_time() -> None:
    wait = line("SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2", stall=1, write=0)
    path = turn_of(
        *LOOP, wait, line("@!P1 FADD R0, R0, R0", stall=1, waits=1), line("STAS [R2.64], R4", stall=1), BACK, *END
    ).path
    assert cycles_of_turn(path, warps=1) == pytest.approx(CLUSTER_MESSAGE + 1 + 1, abs=BRANCH)


# ---- the committed table ----


def numbers_of(instructions: float, stalls: float, loads: list[int]) -> dict[str, Any]:
    loop = {"instructions": instructions, "stalls": stalls, "model cycles": 1, "bound": ["issue", 9], "classes": {}}
    rest = {"load batches": loads, "divisions": 0, "slow paths": 0}
    return {"k<1>": {"local memory": 0, "products touched": [], "loops": [loop | rest]}}


OLD = numbers_of(300, 700, [8])


@pytest.mark.parametrize(
    ("new", "problems"),
    [
        (numbers_of(300, 700, [8]), []),
        (numbers_of(306, 714, [16]), []),
        (numbers_of(200, 300, []), []),
        (numbers_of(307, 700, [8]), ["instructions 300 -> 307"]),
        (numbers_of(300, 715, [8]), ["stalls 700 -> 715"]),
        (numbers_of(300, 700, [4, 4]), ["waits for global loads [8] -> [4, 4]"]),
    ],
)
def test_what_is_worse(new: dict[str, Any], problems: list[str]) -> None:
    assert machine_code.worse(OLD, new, "case") == [f"case: k<1>, loop 1: {problem}" for problem in problems]


def test_a_division_local_memory_and_a_new_kernel_are_worse() -> None:
    new = numbers_of(300, 700, [8])
    new["k<1>"]["local memory"] = 2
    new["k<1>"]["products touched"] = ["FADD R24"]
    new["k<1>"]["loops"][0]["divisions"] = 1
    assert machine_code.worse(OLD, new, "case") == [
        "case: k<1>: uses local memory",
        "case: k<1>: FADD R24",
        "case: k<1>, loop 1: divisions 0 -> 1",
    ]
    assert machine_code.worse({}, OLD, "case") == ["case: k<1> is not in the table"]


def test_cases_of_other_architectures() -> None:
    cases = ["mlstm (64, 64)", "mlstm_step (64, 64)", "slstm 64, block", "slstm 128, cluster"]
    assert machine_code.cases_on("sm_90a", cases) == cases
    assert machine_code.cases_on("sm_80", cases) == cases[:3]
    assert machine_code.cases_on("sm_120", cases) == cases[1:]


def test_the_committed_table_and_its_page() -> None:
    table = machine_code.read()
    assert [*table["cases"]] == [*CASES]
    page = machine_code.PAGE.read_text()
    assert machine_code.with_tables(page, table) == page


def test_counts_of_the_machine_code_are_near_those_of_its_ptx() -> None:
    """ptxas folds addresses and conversions, and makes several instructions of one in double or of a division."""
    for case in machine_code.read()["cases"].values():
        for name, code in case.items():
            assert 0.5 * code["PTX instructions"] < code["instructions"] < 2 * code["PTX instructions"], name


# ---- small kernels through ptxas ----

CUDA = r"""
__global__ void serial(const float* x, float* y, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 32) {
    float a = x[i];
    if (a > 0) a = x[i + (int)a];
    if (a > 0) a = x[i + (int)a];
    sum += a;
  }
  y[threadIdx.x] = sum;
}
__global__ void together(const float* x, float* y, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 128) {
    sum += (x[i] + x[i + 32]) + (x[i + 64] + x[i + 96]);
  }
  y[threadIdx.x] = sum;
}
__global__ void divides(const float* x, float* y, int n) {
  float sum = 1;
#pragma unroll 1
  for (int i = 1; i < n; ++i) sum = x[i] / sum;
  y[threadIdx.x] = sum;
}
__global__ void spills(const float* x, float* y, int n, int which) {
  float values[64];
#pragma unroll 1
  for (int i = 0; i < n; ++i) values[i % 64] = x[i];
  y[threadIdx.x] = values[which];
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """By the first letters of their names. Every line counts as executed once."""
    folder = tmp_path_factory.mktemp("sass")
    try:
        for name in ("nvcc", "ptxas", "nvdisasm"):
            program(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    (folder / "k.cu").write_text(CUDA)
    text = ptx_of(folder / "k.cu", folder, "sm_90a", folder)
    result = {}
    for name in entries(text):
        (code,) = assembled(single_kernel(text, name), "sm_90a", folder)
        lines = {(i.site, i.site[:1])[shorter]: 1.0 for i in code.instructions for shorter in range(2)}
        result[name[name.index("Z") + 2 :].rstrip("PKfiS0_")] = measured(code, lines)
    return result


def test_a_serial_load_is_seen(compiled: dict[str, Measured]) -> None:
    assert load_batches(compiled["serial"].turns[0].path)[:1] == [1]
    assert len(load_batches(compiled["serial"].turns[0].path)) == 3
    assert load_batches(compiled["together"].turns[0].path) == [4]


def test_a_division_is_seen(compiled: dict[str, Measured]) -> None:
    assert compiled["divides"].turns[0].divisions == 1
    assert compiled["divides"].turns[0].slow_paths
    assert not compiled["together"].turns[0].divisions


def test_local_memory_is_seen(compiled: dict[str, Measured]) -> None:
    assert compiled["spills"].local_memory > 0
    assert compiled["together"].local_memory == 0
