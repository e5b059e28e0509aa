#pragma once
// Requests of tests and benchmarks for a way of running, as words: "cluster units=32".
#include <algorithm>
#include <string>

namespace xlstm::ops {

// take(word) for each of them; false where one is unknown to it. No stream: on a machine whose C++ runtime is another
// one, unwinding through it ended the process.
template <class Take>
bool take_words(const std::string& words, Take take) {
  for (size_t at = words.find_first_not_of(' '), end = 0; at < words.size(); at = words.find_first_not_of(' ', end)) {
    end = std::min(words.find(' ', at), words.size());
    if (!take(words.substr(at, end - at))) return false;
  }
  return true;
}

// Of a word like "units=32"; whether it is one.
inline bool take_number(const std::string& word, const std::string& key, int& value) {
  const std::string digits = word.starts_with(key) ? word.substr(key.size()) : "";
  if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string::npos) return false;
  value = std::stoi(digits);
  return true;
}

inline void add_word(std::string& words, const std::string& word) {
  words += (words.empty() ? "" : " ") + word;
}

}  // namespace xlstm::ops
