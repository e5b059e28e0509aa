#pragma once
// Names of functions in the library that this code is in, hidden and local ones too.
#include <string>

namespace ptx {

// The mangled name of the function at an address, or "" where the symbol table has none.
std::string symbol_at(const void* function);

}  // namespace ptx
