#include "golden.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <new>
#include <sstream>

namespace selftest {
namespace {

constexpr size_t kHead = 16;

// FNV-1a over the bits of all values: for cases whose arithmetic is exact.
uint64_t hash(const std::vector<float>& values) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const float value : values) {
    unsigned char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    for (const unsigned char byte : bytes) h = (h ^ byte) * 0x100000001b3u;
  }
  return h;
}

struct Row {
  uint64_t hash = 0;
  std::vector<float> head;
};

// "name": "x" -> x, of a line of JSON that write_golden made
std::string field(const std::string& line, const std::string& key, char open, char close) {
  const std::string start = "\"" + key + "\": " + open;
  const size_t from = line.find(start);
  if (from == std::string::npos) return "";
  const size_t to = line.find(close, from + start.size());
  return line.substr(from + start.size(), to - from - start.size());
}

std::map<std::string, Row> read(const std::string& file) {
  std::map<std::string, Row> rows;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const std::string name = field(line, "case", '"', '"');
    if (name.empty()) continue;
    Row& row = rows[name];
    row.hash = std::strtoull(field(line, "hash", '"', '"').c_str(), nullptr, 16);
    std::istringstream head(field(line, "head", '[', ']'));
    for (std::string value; std::getline(head, value, ',');) row.head.push_back(std::strtof(value.c_str(), nullptr));
  }
  return rows;
}

Outcome head_of(const std::vector<float>& got, const Row& row) {
  return {{got.begin(), got.begin() + static_cast<long>(std::min(got.size(), kHead))}, row.head};
}

}  // namespace

double largest_error(const Outcome& outcome) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (outcome.got.size() != outcome.expected.size() || outcome.got.empty()) return kInfinity;
  double largest = 0;
  for (size_t i = 0; i < outcome.got.size(); ++i) {
    const double got = outcome.got[i], expected = outcome.expected[i];
    if (got == expected) continue;
    const double error = std::fabs(got - expected) / std::fmax(1., std::fabs(expected));
    largest = error == error ? std::fmax(largest, error) : kInfinity;
  }
  return largest;
}

int write_golden(const Cases& cases, const std::string& file) {
  std::ofstream out(file);
  out << "[\n";
  bool first = true;
  for (const Case& c : cases) {
    if (c.expect != Expect::correct) continue;
    const std::vector<float> got = c.run().got;
    char text[64];
    std::snprintf(text, sizeof text, "\"hash\": \"%016llx\"", static_cast<unsigned long long>(hash(got)));
    out << (first ? "" : ",\n") << "  {\"case\": \"" << c.name << "\", \"tolerance\": " << c.tolerance
        << ", \"values\": " << got.size() << ", " << (c.tolerance > 0 ? "\"hash\": \"\"" : text) << ", \"head\": [";
    for (size_t i = 0; i < std::min(got.size(), kHead); ++i) {
      std::snprintf(text, sizeof text, "%s%.9g", i ? ", " : "", static_cast<double>(got[i]));
      out << text;
    }
    out << "]}";
    first = false;
  }
  out << "\n]\n";
  return out.good() ? 0 : 1;
}

namespace {

// What is wrong with a case; empty: nothing.
std::string flaw_of(const Case& c, const std::map<std::string, Row>& rows) {
  const auto row = rows.find(c.name);
  const std::vector<float> got = c.run().got;
  if (row == rows.end()) return "not in the file";
  const double error = largest_error(head_of(got, row->second));
  if (error > c.tolerance) return "the first values differ by " + std::to_string(error);
  if (c.tolerance > 0 || hash(got) == row->second.hash) return "";
  return "values after the first " + std::to_string(kHead) + " differ";
}

// Shared with the process that runs the cases.
struct Progress {
  bool asks;
  size_t cases, next, compared;
  int different;
};

// What only a device can tell, apart from what is compared. False after an error.
bool ask(const Case& c) {
  std::string answer;
  try {
    const double error = largest_error(c.run());
    if (error > c.tolerance) answer = "not as expected, error " + std::to_string(error);
  } catch (const std::exception& e) {
    answer = e.what();
  }
  std::printf("ask  %-58s %s\n", c.name.c_str(), answer.empty() ? "as expected" : answer.c_str());
  std::fflush(stdout);
  return answer.empty() || answer.find("not as expected") == 0;
}

// From the next case on, up to one that throws: after an error a process can do nothing more on its device.
void compare_some(const Cases& cases, const std::map<std::string, Row>& rows, Progress& progress) {
  for (bool usable = true; usable && progress.next < cases.size();) {
    const Case& c = cases[progress.next++];
    if (progress.asks && c.expect == Expect::asked) usable = ask(c);
    if (c.expect != Expect::correct) continue;
    std::string flaw = "the process ended";
    ++progress.compared, ++progress.different;
    try {
      flaw = flaw_of(c, rows);
    } catch (const std::exception& e) {
      flaw = e.what(), usable = false;
    }
    progress.different -= flaw.empty();
    std::printf("%s %-58s %s\n", flaw.empty() ? "ok  " : "FAIL", c.name.c_str(), flaw.c_str());
    std::fflush(stdout);
  }
}

}  // namespace

int compare_golden(Cases (*all_cases)(), const std::string& file, bool asks) {
  const std::map<std::string, Row> rows = read(file);
  void* memory = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  Progress& progress = *new (memory) Progress{};
  progress.asks = asks;
  size_t begun = 0;
  do {
    begun = progress.next;
    std::fflush(stdout);
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {  // the first one to ask the device: its parent could then not have others
      const Cases cases = all_cases();
      progress.cases = cases.size();
      compare_some(cases, rows, progress);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) std::printf("FAIL case number %zu: the process ended\n", progress.next);
  } while (progress.next > begun && progress.next < progress.cases);
  std::printf("{\"compared\": %zu, \"rows\": %zu, \"different\": %d}\n", progress.compared, rows.size(),
              progress.different);
  return progress.different == 0 && progress.compared > 0 ? 0 : 1;
}

}  // namespace selftest
