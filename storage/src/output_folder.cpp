#include "troupe/storage/output_folder.hpp"

#include <filesystem>
#include <span>
#include <system_error>

#include "troupe/storage/text_file.hpp"

#include "file.hpp"

namespace troupe::storage {

namespace {

constexpr std::string_view probe_name = ".writable";

Error unusable(const std::string& path, const std::string& reason) {
  return {Errc::file_failure, "cannot use " + path + " as the output folder: " + reason
                                  + "; set run.output to a folder that can be written"};
}

}  // namespace

Expected<OutputFolder> OutputFolder::open(const std::string& path) {
  std::error_code failure;
  std::filesystem::create_directories(path, failure);
  if (failure) return unusable(path, failure.message());
  OutputFolder folder{path};
  // Never committed, so the probe removes itself.
  auto probe = AtomicFile::create(folder.path_of(probe_name));
  if (!probe) return unusable(path, probe.error().context);
  constexpr std::string_view text = "troupe can write here\n";
  if (auto written = probe->write(std::as_bytes(std::span{text})); !written) {
    return unusable(path, written.error().context);
  }
  return folder;
}

std::string OutputFolder::path_of(std::string_view name) const {
  return (std::filesystem::path{path_} / name).string();
}

Expected<Done> OutputFolder::write(std::string_view name, std::string_view text) const {
  return write_text(path_of(name), text);
}

}  // namespace troupe::storage
