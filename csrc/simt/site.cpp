#include "simt/site.h"

#include <dlfcn.h>
#include <elf.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <unordered_map>

#include "simt/state.h"

namespace simt {
namespace {

constexpr Site kFromSource = Site{1} << 31;  // else an offset into this library's image
constexpr int kFrames = 3;

std::vector<Source> sources;

struct Image {
  const uint8_t* base = nullptr;
  std::string path;
  bool relocatable = true;  // symbols count from the base
};

const Image& image() {
  static const Image found = [] {
    Image image;
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&machine), &info)) {
      image.base = static_cast<const uint8_t*>(info.dli_fbase);
      image.path = info.dli_fname;
      image.relocatable = reinterpret_cast<const Elf64_Ehdr*>(image.base)->e_type == ET_DYN;
    }
    return image;
  }();
  return found;
}

std::string file_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

// addr2line prints each address and then its frames, innermost first.
void resolve_addresses(const std::vector<Site>& offsets, std::unordered_map<Site, std::string>& names) {
  if (offsets.empty() || image().path.empty()) return;
  std::string command = "addr2line -a -i -e '" + image().path + "'";
  const uintptr_t base = image().relocatable ? 0 : reinterpret_cast<uintptr_t>(image().base);
  char word[40];
  for (Site offset : offsets) {
    std::snprintf(word, sizeof word, " %#zx", base + offset - 1);  // inside the call
    command += word;
  }
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (!pipe) return;
  char line[1024];
  size_t which = 0;
  int frames = 0;
  while (std::fgets(line, sizeof line, pipe)) {
    if (!std::strncmp(line, "0x", 2)) {
      ++which;
      frames = 0;
      continue;
    }
    if (which == 0 || which > offsets.size() || line[0] == '?' || ++frames > kFrames) continue;
    line[std::strcspn(line, " \n")] = 0;
    std::string& name = names[offsets[which - 1]];
    name += (name.empty() ? "" : " < ") + file_name(line);
  }
  pclose(pipe);
}

}  // namespace

Site site_of(Source where) {
  if (!where.file) return 0;
  struct Recent {
    Source where;
    Site site;
  };
  static Recent recent[256];
  const auto key = reinterpret_cast<uintptr_t>(where.file) * 31 + static_cast<unsigned>(where.line);
  Recent& entry = recent[(key ^ key >> 8) % 256];
  if (entry.where.file == where.file && entry.where.line == where.line) return entry.site;
  static std::map<std::pair<const char*, int>, Site> known;
  auto [position, is_new] =
      known.try_emplace({where.file, where.line}, kFromSource | static_cast<Site>(sources.size()));
  if (is_new) sources.push_back(where);
  entry = {where, position->second};
  return entry.site;
}

Site site_of(const void* return_address) {
  static const uint8_t* const base = image().base;
  const auto offset = static_cast<uint64_t>(static_cast<const uint8_t*>(return_address) - base);
  return offset < kFromSource ? static_cast<Site>(offset) : 0;
}

std::vector<std::string> describe(const std::vector<Site>& sites) {
  static std::unordered_map<Site, std::string> names;
  std::vector<Site> unknown;
  for (Site site : sites) {
    if (site && !(site & kFromSource) && names.try_emplace(site).second) unknown.push_back(site);
  }
  resolve_addresses(unknown, names);
  std::vector<std::string> result;
  for (Site site : sites) {
    if (!site) {
      result.push_back("an unknown line");
    } else if (site & kFromSource) {
      const Source& source = sources[site & ~kFromSource];
      result.push_back(file_name(source.file) + ":" + std::to_string(source.line));
    } else if (const std::string& name = names[site]; !name.empty()) {
      result.push_back(name);
    } else {
      char offset[64];
      std::snprintf(offset, sizeof offset, "+%#x", site);
      result.push_back(file_name(image().path) + offset);
    }
  }
  return result;
}

std::string describe(Site site) {
  return describe(std::vector<Site>{site})[0];
}

}  // namespace simt
