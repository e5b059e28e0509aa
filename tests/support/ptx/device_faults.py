"""Faults that g++ cannot show: in asm strings, their operands and constraints, and in what the device pass sees alone.

Each one is planted in a copy of a wrapper (csrc/cuda/device), and the self-test in the form of PTX must notice it:
tests/tools/device_faults.py. Planted text has as many lines as what it replaces, so that reports name the same lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.paths import ROOT

WRAPPERS = ROOT / "csrc" / "cuda" / "device"

# == wrapper
#
# what is wrong (nth of the places that have this text, if there are several)
# @ files tests/simt/cases_*.cu that show it: those of their cases whose name has this in it; nothing: all
# - text of the wrapper
# + what takes its place
TABLE = r"""
== math.h

2^x keeps subnormal results
@ wrapper_math: of subnormal
- ex2.approx.ftz.f32
+ ex2.approx.f32

the logarithm takes subnormal operands
@ wrapper_math: of subnormal
- lg2.approx.ftz.f32
+ lg2.approx.f32

1 / x keeps subnormal results
@ wrapper_math: of subnormal
- rcp.approx.ftz.f32
+ rcp.approx.f32

the root takes subnormal operands
@ wrapper_math: of subnormal
- rsqrt.approx.ftz.f32
+ rsqrt.approx.f32

a root in the place of its reciprocal
@ wrapper_math: approximate functions
- rsqrt.approx.ftz.f32
+ sqrt.approx.ftz.f32

== matrix.h

ldmatrix x2: registers the other way round
@ wrapper_warp: ldmatrix x2
- {%0, %1}, [%2]
+ {%1, %0}, [%2]

ldmatrix x4: the middle registers trade places
@ wrapper_warp: ldmatrix x4
- {%0, %1, %2, %3}, [%4]
+ {%0, %2, %1, %3}, [%4]

ldmatrix_trans without .trans
@ wrapper_warp: ldmatrix
- XLSTM_LDMATRIX(".trans")
+ XLSTM_LDMATRIX("")

ldmatrix x4 without a clobber of memory
@ wrapper_warp: ldmatrix x4
- "=r"(r[3])                            \
-                  : "r"(address)                                                              \
-                  : "memory"
+ "=r"(r[3])                            \
+                  : "r"(address)                                                              \
+                  :

stmatrix x4: the last registers trade places
@ wrapper_warp: stmatrix x4
- {%1, %2, %3, %4}
+ {%1, %2, %4, %3}

stmatrix with .trans
@ wrapper_warp: stmatrix
- XLSTM_STMATRIX("")
+ XLSTM_STMATRIX(".trans")

movmatrix that only moves
@ wrapper_warp: movmatrix
- movmatrix.sync.aligned.m8n8.trans.b16
+ mov.b32

movmatrix that is not volatile
@ wrapper_warp: movmatrix
- asm volatile("movmatrix
+ asm("movmatrix

== mma.h

rows of A trade places
@ wrapper_warp: mma
- {%4, %5, %6, %7}
+ {%4, %6, %5, %7}

the accumulator is added in another order
@ wrapper_warp: mma
- {%8, %9}, {%0, %1, %2, %3}
+ {%8, %9}, {%0, %1, %3, %2}

halves of B the other way round
@ wrapper_warp: mma
- {%8, %9}
+ {%9, %8}

the accumulator is only written
@ wrapper_warp: mma
- "+f"(d[0]), "+f"(d[1])
+ "=f"(d[0]), "=f"(d[1])

bf16 as fp16
@ wrapper_warp: mma bf16
- m16n8k16.row.col.f32.bf16.bf16.f32
+ m16n8k16.row.col.f32.f16.f16.f32

fp64: A and B the other way round
@ wrapper_warp: mma f64
- {%2}, {%3}
+ {%3}, {%2}

tf32 is cut off
@ wrapper_warp: round_tf32
- cvt.rna.tf32.f32 %0, %1
+ and.b32 %0, %1, 0xffffe000

ties of tf32 go to even
@ wrapper_warp: round_tf32
- cvt.rna.tf32.f32
+ cvt.rn.tf32.f32

== cp_async.h

16 bytes, valid or not (1 of 2)
@ wrapper_copy: cp.async 16 bytes
- cp.async.cg.shared.global [%0], [%1], 16, %2;
+ cp.async.cg.shared.global [%0], [%1], 16;

a part is the whole (2 of 2)
@ wrapper_copy: of part
- cp.async.cg.shared.global [%0], [%1], 16, %2;
+ cp.async.cg.shared.global [%0], [%1], 16;

a global address of 32 bits
@ wrapper_copy: cp.async 4 bytes
- "l"(from), "n"(kBytes)
+ "r"(static_cast<uint32_t>(reinterpret_cast<uint64_t>(from))), "n"(kBytes)

8 bytes of 16
@ wrapper_copy: through L1
- cp.async.ca.shared.global [%0], [%1], 16
+ cp.async.ca.shared.global [%0], [%1], 8

groups are not committed
@ wrapper_copy: cp.async 4 bytes
- cp.async.commit_group;
+

one group more may be in flight
@ gemm: gemm: correct
- "n"(kGroups)
+ "n"(kGroups + 1)

waits for committed groups only
@ wrapper_copy: cp.async 8 bytes
- cp.async.wait_all;
+ cp.async.wait_group 0;

an arrival that the count does not hold
@ wrapper_copy: mbarrier arrive
- mbarrier.arrive.shared
+ mbarrier.arrive.noinc.shared

an arrival that raises the count
@ wrapper_copy: arrive noinc
- mbarrier.arrive.noinc.shared
+ mbarrier.arrive.shared

a wait without a clobber of memory
@ wrapper_copy gemm:
- "n"(kGroups) : "memory"
+ "n"(kGroups)

== mbarrier.h

init: address and count the other way round
@ wrapper_copy: bulk copies
- init.shared::cta.b64 [%0], %1;
+ init.shared::cta.b64 [%1], %0;

init with one arrival more
@ wrapper_copy: bulk copies
- "r"(count)
+ "r"(count + 1)

a remote arrival stays in the block
@ wrapper_copy: st.async
- arrive.release.cluster.shared::cluster
+ arrive.release.cta.shared::cta

expects nothing
@ wrapper_copy: bulk copies
- expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;
+ expect_tx.relaxed.cta.shared::cta.b64 [%0], 0;

bytes as a count of arrivals
@ wrapper_tma: box of 2
- arrive.expect_tx.release.cta
+ arrive.release.cta

a test of the other parity (1 of 3)
@ wrapper_copy: bulk copies
- "r"(mbarrier), "r"(parity)
+ "r"(mbarrier), "r"(parity ^ 1)

a wait for the other parity (2 of 3)
@ wrapper_copy: bulk copies
- "r"(mbarrier), "r"(parity)
+ "r"(mbarrier), "r"(parity ^ 1)

a cluster's wait for the other parity (3 of 3)
@ wrapper_copy: st.async
- "r"(mbarrier), "r"(parity)
+ "r"(mbarrier), "r"(parity ^ 1)

done means not yet (2 of 3)
@ wrapper_copy: bulk copies
- selp.u32 %0, 1, 0, p
+ selp.u32 %0, 0, 1, p

one attempt is enough
@ wgmma: correct
- while (!mbarrier_try_wait_cta(mbarrier, parity))
+ if (!mbarrier_try_wait_cta(mbarrier, parity))

one attempt is enough in a cluster
@ probe: probe: exchange
- while (!mbarrier_try_wait_cluster(mbarrier, parity))
+ if (!mbarrier_try_wait_cluster(mbarrier, parity))

no fence before the async proxy
@ wrapper_copy: bulk copies
- fence.proxy.async.shared::cta;
+

no fence of global memory
@ wrapper_elements: bulk load
- fence.proxy.async.global;
+

an arrival without a clobber of memory
@ wgmma wrapper_copy:
- "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory"
+ "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(mbarrier)

== memory.h

a volatile load that is weak
@ wrapper_elements: volatile word
- XLSTM_LOAD("volatile")
+ XLSTM_LOAD("weak")

a volatile store that is weak
@ wrapper_elements: volatile word
- XLSTM_STORE("volatile")
+ XLSTM_STORE("weak")

a relaxed load that is weak
@ wrapper_elements: relaxed word
- XLSTM_LOAD("relaxed.gpu")
+ XLSTM_LOAD("weak")

a relaxed store of the block's scope
@ wrapper_elements: relaxed word
- XLSTM_STORE("relaxed.gpu")
+ XLSTM_STORE("relaxed.cta")

acquires nothing
@ wrapper_elements: released word
- XLSTM_LOAD("acquire.gpu")
+ XLSTM_LOAD("relaxed.gpu")

acquires in the block alone
@ wrapper_elements: released word
- XLSTM_LOAD("acquire.gpu")
+ XLSTM_LOAD("acquire.cta")

releases nothing
@ wrapper_elements: released word
- XLSTM_STORE("release.gpu")
+ XLSTM_STORE("relaxed.gpu")

a load that the compiler may move
@ probe: through L2
- asm volatile("ld." semantics ".global.b32 %0, [%1];" : "=r"(r) : "l"(pointer) : "memory")
+ asm("ld." semantics ".global.b32 %0, [%1];" : "=r"(r) : "l"(pointer))

a store without a clobber of memory
@ wrapper_elements barrier:
- "l"(pointer), "r"(bits_as<uint32_t>(value)) : "memory"
+ "l"(pointer), "r"(bits_as<uint32_t>(value))

4 bytes of 8 are loaded
@ wrapper_elements: word of 8
- ".global.b64 %0, [%1];"
+ ".global.b32 %0, [%1];"

4 bytes of 8 are stored
@ wrapper_elements: word of 8
- ".global.b64 [%0], %1;"
+ ".global.b32 [%0], %1;"

16 bytes: words trade places
@ wrapper_elements: 16 bytes
- {%0, %1, %2, %3}, [%4]
+ {%0, %1, %3, %2}, [%4]

16 bytes: a word is stored twice
@ wrapper_elements: 16 bytes
- {%1, %2, %3, %4}
+ {%1, %2, %3, %3}

counts without order
@ barrier: last block
- atom.add.acq_rel.gpu
+ atom.add.relaxed.gpu

counts in the block alone
@ barrier: last block
- atom.add.acq_rel.gpu
+ atom.add.acq_rel.cta

the greatest instead of the sum
@ barrier: last block
- atom.add.acq_rel
+ atom.max.acq_rel

== cluster.h

the block's number in the grid as its rank
@ probe: probe: exchange
- %%cluster_ctarank
+ %%ctaid.x

the grid's size as the cluster's
@ probe: probe: exchange
- %%cluster_nctarank
+ %%nctaid.x

an arrival that releases nothing
@ recurrence: cluster barrier
- arrive.release.aligned
+ arrive.relaxed.aligned

arrives twice, and never waits
@ recurrence: cluster barrier
- barrier.cluster.wait.acquire.aligned
+ barrier.cluster.arrive.release.aligned

does not wait
@ recurrence: cluster barrier
- barrier.cluster.wait.acquire.aligned;
+

mapa: address and rank the other way round
@ wrapper_copy: st.async
- mapa.shared::cluster.u32 %0, %1, %2;
+ mapa.shared::cluster.u32 %0, %2, %1;

a load of the block's own memory
@ wrapper_copy: st.async
- ld.shared::cluster.b32
+ ld.shared::cta.b32

a load of 16 bytes: words trade places
@ wrapper_copy: st.async
- {%0, %1, %2, %3}, [%4]
+ {%1, %0, %2, %3}, [%4]

a store into the block's own memory
@ wrapper_copy: st.async
- st.shared::cluster.v4.b32
+ st.shared::cta.v4.b32

st.async of 8 bytes: the upper half twice
@ wrapper_copy: st.async
- "l"(bits_as<uint64_t>(value))
+ "l"(bits_as<uint64_t>(value) >> 32)

st.async of a pair: its words trade places
@ wrapper_copy: st.async
- {%1, %2}, [%3]
+ {%2, %1}, [%3]

st.async that signals the place of the data
@ wrapper_copy: st.async
- [%0], {%1, %2, %3, %4}, [%5]
+ [%0], {%1, %2, %3, %4}, [%0]

st.async without a clobber of memory
@ wrapper_copy probe:
- "r"(r.w), "r"(mbarrier) : "memory"
+ "r"(r.w), "r"(mbarrier)

== grid.h

the barrier of the block
@ barrier: barrier: grid
- cooperative_groups::this_grid().sync()
+ __syncthreads()

a fence is no barrier
@ barrier: barrier: grid
- cooperative_groups::this_grid().sync()
+ __threadfence()

== barrier.h

always barrier 0
@ barrier: barrier: named, producer
- bar.sync %0, %1;
+ bar.sync 0, %1;

number and threads the other way round
@ barrier: barrier: named, producer
- bar.arrive %0, %1;
+ bar.arrive %1, %0;

an arrival that waits
@ barrier: barrier: named, producer
- bar.arrive %0, %1;
+ bar.sync %0, %1;

a wait that only arrives
@ barrier: barrier: named, producer
- bar.sync %0, %1;
+ bar.arrive %0, %1;

all threads of the block
@ wgmma: correct
- bar.sync %0, %1;
+ bar.sync %0;

a barrier without a clobber of memory
@ barrier: barrier: named, producer
- "bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"
+ "bar.sync %0, %1;" ::"r"(id), "r"(threads)

an arrival without a clobber of memory
@ barrier: barrier: named, producer
- "bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"
+ "bar.arrive %0, %1;" ::"r"(id), "r"(threads)

== tma.h

a load's coordinates the other way round
@ wrapper_tma: box of 2
- XLSTM_TMA_LOAD("2d", "%3, %4"
+ XLSTM_TMA_LOAD("2d", "%4, %3"

a load of five dimensions: the last two trade places
@ wrapper_tma: box of 5
- "%3, %4, %5, %6, %7"
+ "%3, %4, %5, %7, %6"

multicast to one block
@ wrapper_tma: multicast of 2
- "h"(ranks)
+ "h"(static_cast<uint16_t>(1))

multicast of four dimensions: the first twice
@ wrapper_tma: multicast of 4
- "%4, %5, %6, %7", "r"
+ "%4, %5, %6, %4", "r"

a store of one dimension, one element on
@ wrapper_tma: box of 1
- XLSTM_TMA_STORE("1d", "%2", "r"(at[0]))
+ XLSTM_TMA_STORE("1d", "%2", "r"(at[0] + 1))

bulk load: bytes and mbarrier the other way round
@ wrapper_copy: bulk copies
- [%0], [%1], %2, [%3]
+ [%0], [%1], %3, [%2]

bulk store of half of the bytes
@ wrapper_copy: bulk copies
- "l"(to), "r"(from),
-                  "r"(bytes)
+ "l"(to), "r"(from),
+                  "r"(bytes / 2)

waits for the reads of a store alone
@ wrapper_copy: bulk copies
- cp.async.bulk.wait_group %0
+ cp.async.bulk.wait_group.read %0

stores belong to no group
@ wrapper_copy: bulk copies
- cp.async.bulk.commit_group;
+

one group of stores more may be in flight
@ wrapper_copy: bulk copies
- wait_group %0;" ::"n"(kGroups)
+ wait_group %0;" ::"n"(kGroups + 1)

one group of reads more may be in flight
@ wgmma: correct
- wait_group.read %0;" ::"n"(kGroups)
+ wait_group.read %0;" ::"n"(kGroups + 1)

== wgmma.h

no fence
@ wrapper_wgmma: wgmma n64 bf16
- wgmma.fence.sync.aligned;
+

no group
@ wrapper_wgmma: wgmma n64 bf16
- wgmma.commit_group.sync.aligned;
+

one group more may be in flight
@ wrapper_wgmma: wgmma n64 bf16
- "n"(kGroups)
+ "n"(kGroups + 1)

registers of the accumulator trade places
@ wrapper_wgmma: wgmma n16 bf16
- ", %4, %5, %6, %7"
+ ", %4, %5, %7, %6"

the last registers of the largest accumulator trade places
@ wrapper_wgmma: wgmma n256 bf16
- %126, %127
+ %127, %126

the accumulator is only written
@ wrapper_wgmma: wgmma n8 bf16
- "+f"(d[i]), "+f"(d[i + 1])
+ "=f"(d[i]), "=f"(d[i + 1])

A and B transposed the other way round
@ wgmma: correct
- "n"(kATransposed), "n"(kBTransposed)
+ "n"(kBTransposed), "n"(kATransposed)

B in the place of A
@ wrapper_wgmma: wgmma n64 bf16
- "l"(a),                             \
-                   "l"(b)
+ "l"(b),                             \
+                   "l"(a)

adds where it must not
@ wrapper_wgmma: wgmma n64 bf16
- setp.ne.b32 p, " p2 "
+ setp.eq.b32 p, " p2 "

adds where it must not, A in registers
@ wrapper_wgmma: wgmma n64 bf16
- setp.ne.b32 p, " p5 "
+ setp.eq.b32 p, " p5 "

subtracts
@ wrapper_wgmma: wgmma n8 bf16
- p, 1, 1, " p6
+ p, -1, 1, " p6

bf16 as fp16
@ wrapper_wgmma: wgmma n8 bf16
- XLSTM_WGMMA_SS(n, "bf16.bf16"
+ XLSTM_WGMMA_SS(n, "f16.f16"

registers of A trade places
@ wrapper_wgmma: wgmma n8 bf16
- {" p0 ", " p1 ", " p2 ", " p3 "}
+ {" p0 ", " p2 ", " p1 ", " p3 "}

== vector.h

16-bit elements are cut off
@ wrapper_elements: to bf16
- return T(static_cast<float>(x));
+ return bits_as<T>(static_cast<uint16_t>(bits_as<uint32_t>(static_cast<float>(x)) >> 16));

8 bytes of a vector
@ wrapper_elements: vectors
- kCount = 16 / sizeof(T)
+ kCount = 8 / sizeof(T)

one element too many
@ wrapper_elements: vectors
- c < count ?
+ c <= count ?

a vector from 8 bytes on
@ wrapper_elements: vectors
- reinterpret_cast<const uint4*>(from)
+ reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) + 8)

== any.h

every type but the one
@ wrapper_elements: any type
- type == cuda::Type::name
+ type != cuda::Type::name

the stride is added once
@ wrapper_elements: any type
- index + n * stride
+ index + stride

an index in bytes
@ wrapper_elements: any type
- static_cast<T*>(data)[index]
+ static_cast<T*>(data)[index / sizeof(T)]

== shared.h

a generic address as a shared one
@ wrapper_copy: cp.async 4 bytes
- __cvta_generic_to_shared(pointer)
+ reinterpret_cast<uint64_t>(pointer)

shared memory from 16 bytes on
@ wrapper_copy: arrive noinc
- reinterpret_cast<Type*>(xlstm_dynamic_shared_memory)
+ reinterpret_cast<Type*>(xlstm_dynamic_shared_memory + 16)

shared memory of any alignment
@ wrapper_tma: box of 2
- __align__(xlstm::device::kSharedAlignment) unsigned char
+ unsigned char

== platform.h

9.0 has no clusters
@ wrapper_copy: st.async
- (__CUDA_ARCH__ >= 900)
+ (__CUDA_ARCH__ > 900)

no architecture has wgmma
@ wrapper_wgmma: wgmma n64 bf16
- __CUDA_ARCH_FEAT_SM90_ALL
+ __CUDA_ARCH_FEAT_SM90A

the first 4 bytes of any bits
@ wrapper_elements: 16 bytes
- memcpy(&to, &from, sizeof to)
+ memcpy(&to, &from, 4)

4 opaque bytes are only written
@ wrapper_elements: opaque float
- "+r"(bits)
+ "=r"(bits)

8 opaque bytes are only written
@ wrapper_elements: opaque double
- "+l"(bits)
+ "=l"(bits)
"""


@dataclass(frozen=True)
class DeviceFault:
    file: str
    name: str
    nth: int
    places: int
    cases: tuple[str, ...]
    filter: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def planted(self, text: str) -> str:
        """The wrapper's text with the fault."""
        pieces = text.split(self.old)
        if len(pieces) - 1 != self.places:
            raise ValueError(f"{self}: {len(pieces) - 1} places have the text, not {self.places}")
        if self.old.count("\n") != self.new.count("\n"):
            raise ValueError(f"{self}: it moves lines")
        return self.old.join(pieces[: self.nth]) + self.new + self.old.join(pieces[self.nth :])


def read(table: str) -> list[DeviceFault]:
    faults = []
    file = ""
    for block in table.strip().split("\n\n"):
        if block.startswith("== "):
            file = block[3:]
            continue
        head = re.match(r"(.+?)(?: \((\d+) of (\d+)\))?\n@ ([\w ]+):(.*)\n", block)
        if not head:
            raise ValueError(f"this is no fault:\n{block}")
        name, nth, places, cases, names = head.groups()
        lines = block[head.end() :].split("\n")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == mark) for mark in "-+")
        faults.append(
            DeviceFault(file, name, int(nth or 1), int(places or 1), tuple(cases.split()), names.strip(), old, new)
        )
    return faults


FAULTS = read(TABLE)
