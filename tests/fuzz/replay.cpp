// Runs a fuzz target over the files of a folder, without libFuzzer: the kept inputs, the seeds and
// every past finding, are tests like any other.
//
// Usage: <target> FOLDER     Aborts on a finding; exits with 1 if there is no file.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz_target.hpp"

int main(int argument_count, char** arguments) {
  if (argument_count != 2) return 1;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator{arguments[1]}) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    std::cout << path.filename().string() << std::endl;  // Flushed: the last line names a finding.
    std::ifstream file{path, std::ios::binary};
    const std::string input{std::istreambuf_iterator<char>{file}, {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  }
  return paths.empty() ? 1 : 0;
}
