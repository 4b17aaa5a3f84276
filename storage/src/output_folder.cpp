#include "troupe/storage/output_folder.hpp"

#include <cstdint>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "troupe/storage/text_file.hpp"

#include "file.hpp"

namespace troupe::storage {

namespace {

constexpr std::string_view probe_name = ".writable";

Error unusable(const std::string& path, const std::string& reason) {
  return {Errc::file_failure, "cannot use " + path + " as the output folder: " + reason
                                  + "; set run.output to a folder that can be written"};
}

Error immovable(const std::string& path, const std::string& target, std::error_code failure) {
  return {Errc::file_failure, "cannot move the earlier " + path + " to " + target + ": "
                                  + failure.message() + "; set run.output to another folder"};
}

/// Makes the first of the folders "earlier-1", "earlier-2" and so on that is not there yet.
Expected<std::string> make_earlier_folder(const std::string& parent, const std::string& first) {
  for (std::uint32_t number = 1;; ++number) {
    auto path = (std::filesystem::path{parent} / ("earlier-" + std::to_string(number))).string();
    std::error_code failure;
    if (std::filesystem::create_directory(path, failure)) return path;
    if (failure && failure != std::errc::file_exists) return immovable(first, path, failure);
  }
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

Expected<std::optional<std::string>> OutputFolder::set_aside(
    std::span<const std::string_view> names) const {
  std::optional<std::string> folder;
  for (const auto name : names) {
    const auto path = path_of(name);
    std::error_code failure;
    if (!std::filesystem::exists(std::filesystem::symlink_status(path, failure))) continue;
    if (!folder) {
      auto made = make_earlier_folder(path_, path);
      if (!made) return made.error();
      folder = std::move(*made);
    }
    std::filesystem::rename(path, std::filesystem::path{*folder} / name, failure);
    if (failure) return immovable(path, *folder, failure);
  }
  return folder;
}

Expected<Done> OutputFolder::write(std::string_view name, std::string_view text) const {
  return write_text(path_of(name), text);
}

}  // namespace troupe::storage
