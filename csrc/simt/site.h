#pragma once
// Places in kernel code in 32 bits: a source line given by a wrapper, or a return address that symbols turn into one.
#include <cstdint>
#include <string>
#include <vector>

#include "simt/executor.h"

namespace simt {

using Site = uint32_t;  // 0: unknown

Site site_of(Source);
Site site_of(const void* return_address);
// "gemm.cuh:44", or the inlined frames, innermost first: "mma.h:12 < gemm.cuh:44". One entry for each site.
std::vector<std::string> describe(const std::vector<Site>&);
std::string describe(Site);

}  // namespace simt
