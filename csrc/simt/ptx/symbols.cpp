#include "simt/ptx/symbols.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <unordered_map>

namespace ptx {
namespace {

using Symbols = std::unordered_map<const void*, std::string>;

// The file of a library, mapped for reading.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    const int file = open(path, O_RDONLY);
    struct stat status;
    if (file >= 0 && fstat(file, &status) == 0) {
      bytes_ = static_cast<size_t>(status.st_size);
      memory_ = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    }
    if (file >= 0) close(file);
  }
  ~MappedFile() {
    if (valid()) munmap(memory_, bytes_);
  }
  MappedFile(const MappedFile&) = delete;
  bool valid() const { return memory_ != MAP_FAILED; }
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(static_cast<const uint8_t*>(memory_) + offset);
  }

 private:
  void* memory_ = MAP_FAILED;
  size_t bytes_ = 0;
};

// The dynamic linker knows exported names only, so that the table of the file itself is read.
Symbols read_symbols() {
  Symbols symbols;
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&read_symbols), &info)) return symbols;
  const MappedFile file(info.dli_fname);
  if (!file.valid()) return symbols;
  const auto* base = static_cast<const uint8_t*>(info.dli_fbase);
  const auto& header = *file.at<Elf64_Ehdr>(0);
  const auto* sections = file.at<Elf64_Shdr>(header.e_shoff);
  for (int i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* names = file.at<char>(sections[sections[i].sh_link].sh_offset);
    const auto* symbol = file.at<Elf64_Sym>(sections[i].sh_offset);
    for (const auto* end = symbol + sections[i].sh_size / sizeof *symbol; symbol != end; ++symbol) {
      const bool function = ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_value;
      if (function) symbols[base + symbol->st_value] = names + symbol->st_name;
    }
  }
  return symbols;
}

}  // namespace

std::string symbol_at(const void* function) {
  static const Symbols symbols = read_symbols();
  const auto found = symbols.find(function);
  return found == symbols.end() ? "" : found->second;
}

}  // namespace ptx
