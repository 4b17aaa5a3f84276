#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "troupe/storage/safetensors.hpp"

#include "safetensors_format.hpp"

namespace troupe::storage {

namespace {

using Json = nlohmann::json;

std::string json_text(std::string_view text) {
  return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::uint64_t little_endian(std::span<const std::byte> bytes) {
  std::uint64_t number = 0;
  for (std::size_t i = length_size_bytes; i-- > 0;) {
    number = number << 8U | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return number;
}

std::optional<DType> dtype_of(std::string_view name) {
  const auto* spec = std::find_if(dtype_specs.begin(), dtype_specs.end(),
                                  [&](const auto& known) { return known.name == name; });
  if (spec == dtype_specs.end()) return std::nullopt;
  return static_cast<DType>(spec - dtype_specs.begin());
}

/// Reads one file; the members hold what every step and every sentence needs.
class Parser {
public:
  Parser(std::span<const std::byte> bytes, std::string_view source_name)
      : bytes_{bytes}, source_name_{source_name} {}

  Expected<SafetensorsContent> parse();

private:
  Expected<Done> read_header();
  Expected<Done> read_metadata(const Json& entry);
  Expected<Done> read_tensor(const std::string& name, const Json& entry);
  Expected<Done> check_coverage();

  [[nodiscard]] Error invalid(const std::string& what) const {
    return {Errc::invalid_file, source_name_ + " is not a valid safetensors file: " + what};
  }
  [[nodiscard]] Error invalid(const std::string& tensor, const std::string& what) const {
    return invalid("tensor " + json_text(tensor) + " " + what);
  }

  std::span<const std::byte> bytes_;
  std::string source_name_;
  Json header_;
  std::span<const std::byte> buffer_;  ///< What follows the header.
  SafetensorsContent content_;
};

Expected<SafetensorsContent> Parser::parse() {
  if (auto done = read_header(); !done) return done.error();
  for (const auto& [name, entry] : header_.items()) {
    auto done = name == metadata_key ? read_metadata(entry) : read_tensor(name, entry);
    if (!done) return done.error();
  }
  if (auto done = check_coverage(); !done) return done.error();
  return std::move(content_);
}

Expected<Done> Parser::read_header() {
  if (bytes_.size() < length_size_bytes) {
    return invalid("it has " + std::to_string(bytes_.size()) + " bytes, expected at least 8");
  }
  const auto size = little_endian(bytes_.first(length_size_bytes));
  const auto most = std::min(header_size_max_bytes, bytes_.size() - length_size_bytes);
  if (size > most) {
    return invalid("its first 8 bytes announce a header of " + std::to_string(size)
                   + " bytes, expected at most " + std::to_string(most));
  }
  const auto text = bytes_.subspan(length_size_bytes, size);
  buffer_ = bytes_.subspan(length_size_bytes + size);
  if (text.empty() || text.front() != std::byte{'{'}) {
    return invalid("its header does not begin with '{'");
  }

  std::vector<std::set<std::string>> keys;  // Of the objects that are open.
  std::optional<std::string> repeated;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) repeated = key;
    }
    return true;
  };
  const auto* begin = reinterpret_cast<const char*>(text.data());
  header_ = Json::parse(begin, begin + text.size(), watch, false);
  if (header_.is_discarded()) return invalid("its header is not valid JSON");
  if (repeated) return invalid("its header has the key " + json_text(*repeated) + " twice");
  return Done{};
}

Expected<Done> Parser::read_metadata(const Json& entry) {
  if (!entry.is_object()) return invalid("__metadata__ is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) return invalid("__metadata__ " + json_text(key) + " is not a string");
    content_.metadata.emplace(key, value.get_ref<const std::string&>());
  }
  return Done{};
}

Expected<Done> Parser::read_tensor(const std::string& name, const Json& entry) {
  const auto is_count = [](const Json& value) { return value.is_number_unsigned(); };
  const auto field = [&](const char* key) -> const Json& {
    static const Json absent;
    const auto found = entry.find(key);
    return found == entry.end() ? absent : *found;
  };
  if (!entry.is_object()) return invalid(name, "is not described by an object");

  const auto& dtype_name = field("dtype");
  const auto dtype =
      dtype_name.is_string() ? dtype_of(dtype_name.get_ref<const std::string&>()) : std::nullopt;
  if (!dtype) return invalid(name, "has no known dtype");
  const auto& shape_list = field("shape");
  if (!shape_list.is_array() || !std::all_of(shape_list.begin(), shape_list.end(), is_count)) {
    return invalid(name, "has a shape that is not a list of counts");
  }
  const auto& offsets = field("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2 || !is_count(offsets[0])
      || !is_count(offsets[1])) {
    return invalid(name, "has data_offsets that are not [begin, end]");
  }

  const auto begin = offsets[0].get<std::uint64_t>();
  const auto end = offsets[1].get<std::uint64_t>();
  if (begin > end || end > buffer_.size()) {
    return invalid(name, "lies at [" + std::to_string(begin) + ", " + std::to_string(end)
                             + "), but the file has " + std::to_string(buffer_.size())
                             + " bytes of tensors");
  }
  auto shape = shape_list.get<std::vector<std::uint64_t>>();
  const auto expected = size_bytes_of(*dtype, shape);
  if (expected != end - begin) {
    return invalid(name,
                   "of type " + std::string{to_string(*dtype)} + " and shape " + shape_list.dump()
                       + " has " + std::to_string(end - begin) + " bytes, expected "
                       + (expected ? std::to_string(*expected) : "a whole number below 2^64"));
  }
  content_.tensors.push_back({name, *dtype, std::move(shape), buffer_.subspan(begin, end - begin)});
  return Done{};
}

Expected<Done> Parser::check_coverage() {
  auto& tensors = content_.tensors;
  const auto place = [this](const TensorView& tensor) {
    const auto begin = static_cast<std::uint64_t>(tensor.bytes.data() - buffer_.data());
    return std::pair{begin, begin + tensor.bytes.size()};
  };
  std::sort(tensors.begin(), tensors.end(), [&](const auto& left, const auto& right) {
    return std::tuple{place(left), std::string_view{left.name}}
           < std::tuple{place(right), std::string_view{right.name}};
  });
  std::uint64_t covered = 0;
  for (const auto& tensor : tensors) {
    const auto [begin, end] = place(tensor);
    if (begin != covered) {
      return invalid(tensor.name, "begins at byte " + std::to_string(begin) + ", expected byte "
                                      + std::to_string(covered)
                                      + ", where the tensor before it ends");
    }
    covered = end;
  }
  if (covered != buffer_.size()) {
    return invalid("its tensors end at byte " + std::to_string(covered) + " of "
                   + std::to_string(buffer_.size()) + " that follow the header");
  }
  return Done{};
}

}  // namespace

Expected<SafetensorsContent> parse_safetensors(std::span<const std::byte> bytes,
                                               std::string_view source_name) {
  return Parser{bytes, source_name}.parse();
}

Expected<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  auto content = parse_safetensors(file->bytes(), path);
  if (!content) return content.error();
  return SafetensorsFile{std::move(*file), std::move(*content)};
}

const TensorView* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto tensor = std::find_if(content_.tensors.begin(), content_.tensors.end(),
                                   [&](const auto& each) { return each.name == name; });
  return tensor == content_.tensors.end() ? nullptr : &*tensor;
}

}  // namespace troupe::storage
