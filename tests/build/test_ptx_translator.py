"""tools/ptx: what it makes of PTX, and what it refuses, by file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ptx.cases import CASES
from tools.ptx.cpp import basic_blocks, files, host_name
from tools.ptx.parse import Module
from tools.ptx.types import Unsupported

LINE = 11  # of the first statement in a kernel
HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def kernel(*lines: str, head: str = HEAD, parameters: str = ".param .u64 p") -> str:
    registers = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<9>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<9>;"
    return f"{head}.visible .entry k({parameters})\n{{\n{registers}\n" + "\n".join(lines) + "\nret;\n}\n"


def translated(*lines: str, **options: str) -> str:
    (text,) = files(Module(kernel(*lines, **options)), "k.ptx", 1)
    return text


def test_an_instruction_and_its_guard() -> None:
    text = translated("@!%p1 add.rn.ftz.f32 %f1, %f2, 0f3F800000;")
    assert "if (!_p1) { set(_f1, add<rn, true, false>(_f2, as<f32>(0x3F800000u))); }" in text


def test_inlined_lines_are_listed() -> None:
    lines = (".loc 2 96 5", ".loc 1 40 3, function_name $L__info, inlined_at 2 96 5", "mov.u32 %r1, 0;")
    text = translated(*lines, head=HEAD + '.file 1 "csrc/mma.h"\n.file 2 "csrc/tile.h"\n')
    assert '{"mma.h:40 < tile.h", 96},' in text


def test_registers_of_a_block_have_names_of_their_own() -> None:
    text = translated("{ .reg .pred p; setp.ne.b32 p, %r1, 0; selp.b32 %r2, 1, 2, p; }")
    assert "bool _p_in1;" in text and "set(_r2, _p_in1 ? " in text


def test_an_arrival_has_a_count() -> None:
    arrive = "mbarrier.arrive.release.cta.shared::cta.b64 _, "
    assert "simt::mbarrier_arrive(own_mbarrier(S, u32(u64(u32(_r1))), L[0]), _r2, 0, L[0]);" in translated(
        f"{arrive}[%r1], %r2;"
    )
    assert ", 1, 0, L[0]);" in translated(f"{arrive}[%r1];")


def test_wgmma_keeps_its_registers() -> None:
    """D as elements of an array, A as the registers themselves: both are looked at again after the wait."""
    product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16"
    text = translated(f"{product} {{%f1,%f2,%f3,%f4}}, {{%r1,%r2,%r3,%r4}}, %rd1, 1, 1, 1, 0;")
    assert "&_f1 = accumulator_0[0]" in text and "const u32* const a[] = {&_r1, &_r2, &_r3, &_r4};" in text
    with pytest.raises(Unsupported, match="registers other than u32"):
        translated(f"{product} {{%f1,%f2,%f3,%f4}}, {{%f5,%f6,%f7,%f8}}, %rd1, 1, 1, 1, 0;")


def test_a_wait_has_a_scope() -> None:
    wait = "mbarrier.try_wait.parity.acquire.{}.shared::cta.b64 %p1, [%r1], %r2;"
    assert "_r2, simt::Scope::block, L[0])" in translated(wait.format("cta"))
    assert "_r2, simt::Scope::cluster, L[0])" in translated(wait.format("cluster"))


SUM = """.func (.param .b32 sum) f(.param .b64 a, .param .b32 b);
.func (.param .b32 sum) f(.param .b64 a, .param .b32 b) {
.reg .b32 %r<3>;
ld.param.b32 %r1, [b]; st.param.b32 [sum+0], %r1; ret;
}
"""


def test_a_function_that_is_called() -> None:
    pass_two = ".param .b64 x; .param .b32 y; st.param.b64 [x+0], %rd1; st.param.b32 [y+0], %r1; .param .b32 z;"
    text = translated(f"{{ {pass_two} call.uni (z), f, (x, y); ld.param.b32 %r2, [z+0]; }}", head=HEAD + SUM)
    callee, body = text.index("const auto call_f = [&]"), text.index("st_private<u64, 1>(u64(x_in1) + 0, {_rd1}")
    assert callee < body
    assert "st_private<u32, 1>(u64(R) + 0, {_r1}" in text[callee:body]
    assert (
        "std::memcpy(arguments + 0, x_in1, 8); std::memcpy(arguments + 8, y_in1, 4); call_f(arguments, z_in1);" in text
    )


def test_blocks_of_what_a_kernel_calls_are_counted() -> None:
    (function,) = Module(kernel("call f, (); mov.u32 %r1, 0;", head=HEAD + ".func f() { trap; ret; }\n")).functions
    assert [[s.opcode for s in block] for block in basic_blocks(function)] == [
        ["trap", "ret"],
        ["call", "mov.u32", "ret"],
    ]


def test_a_kernel_goes_to_one_of_the_files() -> None:
    texts = files(Module(kernel("mov.u32 %r1, 0;")), "k.ptx", 3)
    assert sum("void body" in text for text in texts) == 1


def test_parameters_lie_where_the_ptx_has_them() -> None:
    text = translated(parameters=".param .u8 a, .param .align 8 .b8 b[20], .param .u16 c, .param .f64 d")
    assert "parameters[] = {{0, 1}, {8, 20}, {28, 2}, {32, 8}};" in text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("frob.b32 %r1, %r2;", "instruction frob"),
        ("clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p1, %rd1;", "instruction clusterlaunchcontrol"),
        ("ld.shared.nc.u32 %r1, [%r2];", "nc on other than"),
        ("st.global.nc.u32 [%rd1], %r1;", "nc on other than"),
        ("add.rn.fancy.f32 %f1, %f2, %f3;", r"modifiers \.fancy"),
        ("add.s24 %r1, %r2, %r3;", r"type \.s24"),
        ("add.rn.rz.f32 %f1, %f2, %f3;", "rn and rz together"),
        ("mov.u32 %r1, %smid;", "register %smid"),
        ("mov.u32 %r1, %q3;", "register %q3"),
        ("ld.relaxed.cta.global.u32 %r1, [%rd1];", "relaxed cta access"),
        ("ld.relaxed.gpu.shared.u32 %r1, [%r2];", "relaxed gpu access of shared memory"),
        ("st.param.u32 [p], %r1;", "a store to param memory"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 8;", "8 bytes"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1,%f2}, {%r1,%r2}, {%r3}, {%f1,%f2};", "shape m16n8k8"),
        ("mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 %p1, [%r1], %r2;", "form of mbarrier"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1,%f2}, %rd1, %rd2, 1, 1, 1, 0, 0;", "registers"),
        ("elect.async %r1|%p1, 0xffffffff;", "form of elect"),
        ("setmaxnreg.inc.sync.u32 40;", "form of setmaxnreg"),
        ("cp.async.bulk.tensor.1d.L2.global.tile [%rd1, {%r1}];", "form of a tensor copy"),
        ("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%rd1, {%r1}];", "form of a tensor copy"),
        ("rcp.rm.f32 %f1, %f2;", "rounding"),
        ("atom.global.cta.add.u32 %r1, [%rd1], %r2;", "cta scope of global memory"),
        ("red.global.add.f32 [%rd1], %f1;", "an f32"),
        ("membar.cta;", "form of a fence"),
        ("fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128;", "form of a fence"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_an_error(line: str, problem: str) -> None:
    with pytest.raises(Unsupported, match=f"line {LINE}: .*{problem}"):
        translated(line)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no PTX"),
        ("\x7fELF\x02\x01", "no PTX"),
        ("int main() { return 0; }", "no PTX"),
        (kernel(head=HEAD.replace("9.0", "42.7")), "PTX version 42.7"),
        (kernel(head=HEAD.replace("sm_90a", "sm_103f")), "target sm_103f"),
        (kernel(head=HEAD.replace("size 64", "size 32")), "32 bits"),
        (kernel("mov.u32 %r1, 0;")[:-8], "cut short: k has no end"),
        (kernel()[: len(HEAD) + 30], "cut short in the head"),
        (kernel("call f, ();", head=HEAD + ".func f() { call f, (); ret; }\n"), "a recursion"),
        (kernel("call g, ();", head=HEAD + ".func f() { ret; }\n"), "no function of this file"),
        (kernel("call f, ();", head=HEAD + ".func f(.param .b32 p) { ret; }\n"), "not what the function takes"),
        (kernel("call f, ();", head=HEAD + ".func f() { exit; }\n"), "exit in a function"),
        (kernel(head=HEAD + ".extern .shared .align 16 .b8 s[];\n"), "s is aligned to 16"),
        (kernel("mov.u32 %r1 0"), "line 1"),
        (kernel(parameters=".param .texref t"), "texref"),
    ],
)
def test_what_is_no_whole_ptx_is_refused(text: str, problem: str) -> None:
    with pytest.raises(Unsupported, match=problem):
        files(Module(text), "k.ptx", 1)


def test_the_command_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.ptx"
    file.write_text(kernel("frob.b32 %r1, %r2;"))
    command = [sys.executable, "-m", "tools.ptx", str(file), "--output", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"{file}: line {LINE}: frob.b32 %r1, %r2: instruction frob\n"
    assert not (tmp_path / "out").exists()


def test_names_as_gcc_writes_them() -> None:
    nvcc = "_ZN5xlstm45_GLOBAL__N__0123abcd_8_gates_cu_89abcdef_1234515gates_kernelEPfi"
    assert len("_GLOBAL__N__0123abcd_8_gates_cu_89abcdef_12345") == 46
    assert host_name(nvcc.replace("45_", "46_"), True) == "_ZN5xlstm12_GLOBAL__N_115gates_kernelEPfi"
    assert host_name("_ZN5xlstm6kernelEv", False) == "_ZN5xlstm6kernelEv"


def test_names_of_static_functions() -> None:
    assert host_name("_ZN5xlstm6kernelILi3EEEvPf", True) == "_ZN5xlstmL6kernelILi3EEEvPf"
    assert host_name("_Z6kernelv", True) == "_ZL6kernelv"


def test_every_case_is_another_instruction() -> None:
    cases = [(case.text, case.result) for case in CASES]  # a register that is wider than the result is another case
    assert len({*cases}) == len(cases)
