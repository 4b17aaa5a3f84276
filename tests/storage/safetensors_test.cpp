#include "troupe/storage/safetensors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"

#include "temporary_folder.hpp"

namespace troupe::storage {
namespace {

// Tensors whose elements say where they belong: element i of tensor k is 1000 k + i. The script
// read_safetensors.py knows the same list.
struct Sample {
  std::vector<std::uint8_t> small{0, 1, 2, 3, 4};
  std::vector<float> weight{1000, 1001, 1002, 1003, 1004, 1005};
  std::vector<float> bias{2000, 2001, 2002};
  std::vector<std::int64_t> counts{3000, 3001};
  std::vector<double> scalar{4000};
  Metadata metadata{{"format", "pt"}, {"made \"by\"", "a test \xc3\xa9"}};

  [[nodiscard]] std::vector<TensorView> tensors() const {
    return {{"h.0.attn.weight", DType::f32, {2, 3}, std::as_bytes(std::span{weight})},
            {"scalar", DType::f64, {}, std::as_bytes(std::span{scalar})},
            {"small", DType::u8, {5}, std::as_bytes(std::span{small})},
            {"h.0.attn.bias", DType::f32, {3}, std::as_bytes(std::span{bias})},
            {"empty", DType::f32, {0, 7}, {}},
            {"counts", DType::i64, {2}, std::as_bytes(std::span{counts})}};
  }
};

std::string file_of(std::string_view header, std::size_t data_size_bytes = 0) {
  std::string content(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) {
    content[i] = static_cast<char>(header.size() >> (8 * i) & 0xffU);
  }
  content += header;
  for (std::size_t i = 0; i < data_size_bytes; ++i) content += static_cast<char>(i);
  return content;
}

Expected<SafetensorsContent> parsed(std::string_view content) {
  return parse_safetensors(std::as_bytes(std::span{content}), "w.safetensors");
}

std::string refusal(std::string_view content) {
  constexpr std::string_view start = "w.safetensors is not a valid safetensors file: ";
  const auto result = parsed(content);
  if (result) return "accepted";
  EXPECT_EQ(result.error().code, Errc::invalid_file);
  const auto& context = result.error().context;
  EXPECT_EQ(context.substr(0, start.size()), start);
  return context.substr(std::min(start.size(), context.size()));
}

std::string header_refusal(std::string_view header, std::size_t data_size_bytes = 0) {
  return refusal(file_of(header, data_size_bytes));
}

TEST(Safetensors, ReadBackEqualWhatWasWritten) {
  const TemporaryFolder folder;
  const Sample sample;
  const auto tensors = sample.tensors();
  ASSERT_TRUE(write_safetensors(folder / "w.safetensors", tensors, sample.metadata));
  auto opened = SafetensorsFile::open(folder / "w.safetensors");
  ASSERT_TRUE(opened) << opened.error().context;
  const SafetensorsFile file = std::move(*opened);
  EXPECT_EQ(file.metadata(), sample.metadata);
  EXPECT_EQ(file.tensors().size(), tensors.size());
  for (const auto& tensor : tensors) {
    const auto* found = file.find(tensor.name);
    ASSERT_NE(found, nullptr) << tensor.name;
    EXPECT_EQ(found->dtype, tensor.dtype);
    EXPECT_EQ(found->shape, tensor.shape);
    EXPECT_TRUE(std::equal(found->bytes.begin(), found->bytes.end(), tensor.bytes.begin(),
                           tensor.bytes.end()))
        << tensor.name;
  }
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"w.safetensors"});
}

TEST(Safetensors, AreTheBytesThatTheFormatSays) {
  const TemporaryFolder folder;
  const std::vector<std::uint8_t> u8{7};
  const std::vector<std::uint16_t> u16{0x0102};
  const std::vector<TensorView> tensors{{"a", DType::u8, {1}, std::as_bytes(std::span{u8})},
                                        {"b", DType::bf16, {1}, std::as_bytes(std::span{u16})}};
  ASSERT_TRUE(write_safetensors(folder / "w", tensors, {}));
  std::string header = R"({"b":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})";
  header.append((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(read_file(folder / "w"), file_of(header) + "\x02\x01\x07");
}

TEST(Safetensors, WithTheSameContentAreTheSameBytes) {
  const TemporaryFolder folder;
  const Sample sample;
  auto tensors = sample.tensors();
  ASSERT_TRUE(write_safetensors(folder / "first", tensors, sample.metadata));
  std::reverse(tensors.begin(), tensors.end());
  ASSERT_TRUE(write_safetensors(folder / "second", tensors, sample.metadata));
  EXPECT_EQ(read_file(folder / "first"), read_file(folder / "second"));
}

TEST(Safetensors, FetchedOneByOneAreTheSameBytes) {
  const TemporaryFolder folder;
  const Sample sample;
  const auto tensors = sample.tensors();
  ASSERT_TRUE(write_safetensors(folder / "whole", tensors, sample.metadata));
  auto without_bytes = tensors;
  for (auto& tensor : without_bytes) tensor.bytes = {};
  std::vector<std::byte> memory;
  const auto read = [&](std::size_t index) -> Expected<std::span<const std::byte>> {
    memory.assign(tensors[index].bytes.begin(), tensors[index].bytes.end());
    return std::span<const std::byte>{memory};
  };
  ASSERT_TRUE(write_safetensors(folder / "one by one", without_bytes, sample.metadata, read));
  EXPECT_EQ(read_file(folder / "one by one"), read_file(folder / "whole"));
}

TEST(Safetensors, LeavesNothingBehindWhenATensorCannotBeRead) {
  const TemporaryFolder folder;
  const Sample sample;
  const auto tensors = sample.tensors();
  const auto read = [&](std::size_t index) -> Expected<std::span<const std::byte>> {
    if (index == 0) return Error{Errc::peer_unreachable, "the node is gone"};
    return tensors[index].bytes;
  };
  const auto written = write_safetensors(folder / "w", tensors, {}, read);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().context, "the node is gone");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Safetensors, AreReadByAnIndependentReader) {
  if (std::string_view{TROUPE_PYTHON}.empty()) GTEST_SKIP() << "there is no Python here";
  const TemporaryFolder folder;
  const Sample sample;
  ASSERT_TRUE(write_safetensors(folder / "w", sample.tensors(), sample.metadata));
  const std::string command =
      "'" TROUPE_PYTHON "' '" TROUPE_READ_SAFETENSORS "' '" + folder / "w" + "'";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

TEST(Safetensors, OnAFullDiskLeaveWhatWasThere) {
  const TemporaryFolder folder;
  const Sample sample;
  ASSERT_TRUE(write_safetensors(folder / "w", sample.tensors(), sample.metadata));
  const rlim_t whole = read_file(folder / "w").size();
  write_file(folder / "w", "older weights");
  for (const rlim_t size_bytes : {rlim_t{0}, rlim_t{4}, whole / 2, whole - 1}) {
    const FullDisk full{size_bytes};
    const auto written = write_safetensors(folder / "w", sample.tensors(), sample.metadata);
    ASSERT_FALSE(written) << size_bytes;
    EXPECT_EQ(written.error().code, Errc::file_failure);
    EXPECT_EQ(written.error().context, "cannot write " + folder / "w" + ": File too large");
    EXPECT_EQ(folder.names(), std::vector<std::string>{"w"});
    EXPECT_EQ(read_file(folder / "w"), "older weights");
  }
}

TEST(Safetensors, SayWhereTheyCannotBeWritten) {
  const Sample sample;
  const auto written = write_safetensors("/none/w", sample.tensors(), {});
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().context, "cannot create /none/w.partial: No such file or directory");
}

TEST(SafetensorsReader, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(parsed(file_of("{}")));
  EXPECT_TRUE(parsed(file_of("{}     ")));
  EXPECT_TRUE(parsed(file_of(R"({"__metadata__":{}})")));
  // Tensors in any order, a scalar, an empty one between two, an unknown field, six-bit floats.
  constexpr std::string_view header =
      R"({"late":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[4,7]},
      "first":{"dtype":"F32","shape":[],"data_offsets":[0,4],"note":null},
      "nothing":{"dtype":"I8","shape":[3,0],"data_offsets":[4,4]}})";
  const auto content = file_of(header, 7);
  const auto result = parsed(content);
  ASSERT_TRUE(result) << result.error().context;
  ASSERT_EQ(result->tensors.size(), 3U);
  EXPECT_EQ(result->tensors[0].name, "first");
  EXPECT_EQ(result->tensors[1].name, "nothing");
  EXPECT_EQ(result->tensors[2].name, "late");
  EXPECT_EQ(result->tensors[2].bytes[2], std::byte{6});
}

TEST(SafetensorsReader, RefusesABrokenFrame) {
  EXPECT_EQ(refusal(""), "it has 0 bytes, expected at least 8");
  EXPECT_EQ(refusal("1234567"), "it has 7 bytes, expected at least 8");
  EXPECT_EQ(refusal(file_of("{}").substr(0, 9)),
            "its first 8 bytes announce a header of 2 bytes, expected at most 1");
  EXPECT_EQ(
      refusal("\xff\xff\xff\xff\xff\xff\xff\xff{}"),
      "its first 8 bytes announce a header of 18446744073709551615 bytes, expected at most 2");
  EXPECT_EQ(header_refusal(""), "its header does not begin with '{'");
  EXPECT_EQ(header_refusal(" {}"), "its header does not begin with '{'");
  EXPECT_EQ(header_refusal("{\"a\":"), "its header is not valid JSON");
  EXPECT_EQ(header_refusal("{}x"), "its header is not valid JSON");
  EXPECT_EQ(header_refusal("{\"\xff\":1}"), "its header is not valid JSON");
  EXPECT_EQ(header_refusal("{}", 1), "its tensors end at byte 0 of 1 that follow the header");
}

TEST(SafetensorsReader, RefusesAKeyThatOccursTwice) {
  constexpr std::string_view tensor = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  const auto both = "{\"a\":" + std::string{tensor} + ",\"a\":" + std::string{tensor} + "}";
  EXPECT_EQ(header_refusal(both, 1), "its header has the key \"a\" twice");
  EXPECT_EQ(
      header_refusal(R"({"a":{"dtype":"U8","shape":[2],"shape":[1],"data_offsets":[0,1]}})", 1),
      "its header has the key \"shape\" twice");
  EXPECT_EQ(header_refusal(R"({"__metadata__":{"k":"1","k":"2"}})"),
            "its header has the key \"k\" twice");
}

TEST(SafetensorsReader, RefusesATensorThatIsNotDescribed) {
  const auto with = [](std::string_view entry) {
    return header_refusal("{\"a\":" + std::string{entry} + "}", 4);
  };
  EXPECT_EQ(with("3"), "tensor \"a\" is not described by an object");
  EXPECT_EQ(with("{}"), "tensor \"a\" has no known dtype");
  EXPECT_EQ(with(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})"),
            "tensor \"a\" has no known dtype");
  EXPECT_EQ(with(R"({"dtype":"F32","data_offsets":[0,4]})"),
            "tensor \"a\" has a shape that is not a list of counts");
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"),
            "tensor \"a\" has a shape that is not a list of counts");
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"),
            "tensor \"a\" has a shape that is not a list of counts");
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})"),
            "tensor \"a\" has data_offsets that are not [begin, end]");
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[1],"data_offsets":{"0":0,"1":4}})"),
            "tensor \"a\" has data_offsets that are not [begin, end]");
  EXPECT_EQ(header_refusal(R"({"__metadata__":[]})"), "__metadata__ is not an object");
  EXPECT_EQ(header_refusal(R"({"__metadata__":{"a":1}})"), "__metadata__ \"a\" is not a string");
}

TEST(SafetensorsReader, RefusesATensorInTheWrongPlace) {
  const auto with = [](std::string_view shape, std::string_view offsets) {
    return header_refusal("{\"a\":{\"dtype\":\"F32\",\"shape\":" + std::string{shape}
                              + ",\"data_offsets\":" + std::string{offsets} + "}}",
                          4);
  };
  EXPECT_EQ(with("[1]", "[0,4]"), "accepted");
  EXPECT_EQ(with("[1]", "[4,0]"),
            "tensor \"a\" lies at [4, 0), but the file has 4 bytes of tensors");
  EXPECT_EQ(with("[2]", "[0,8]"),
            "tensor \"a\" lies at [0, 8), but the file has 4 bytes of tensors");
  EXPECT_EQ(with("[2]", "[0,4]"), "tensor \"a\" of type F32 and shape [2] has 4 bytes, expected 8");
  EXPECT_EQ(with("[4294967296,4294967297]", "[0,4]"),
            "tensor \"a\" of type F32 and shape [4294967296,4294967297] has 4 bytes, expected a "
            "whole number below 2^64");
  EXPECT_EQ(with("[18446744073709551616]", "[0,4]"),
            "tensor \"a\" has a shape that is not a list of counts");
  EXPECT_EQ(with("[0]", "[4,4]"),
            "tensor \"a\" begins at byte 4, expected byte 0, where the tensor before it ends");
  EXPECT_EQ(
      header_refusal(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1),
      "tensor \"a\" of type F4 and shape [3] has 1 bytes, expected a whole number below 2^64");
}

TEST(SafetensorsReader, RefusesOverlapsAndHoles) {
  const auto two = [](std::string_view a, std::string_view b) {
    const std::string open = R"({"dtype":"U8","shape":[2],"data_offsets":)";
    return header_refusal(
        "{\"a\":" + open + std::string{a} + "},\"b\":" + open + std::string{b} + "}}", 5);
  };
  EXPECT_EQ(two("[0,2]", "[1,3]"),
            "tensor \"b\" begins at byte 1, expected byte 2, where the tensor before it ends");
  EXPECT_EQ(two("[0,2]", "[0,2]"),
            "tensor \"b\" begins at byte 0, expected byte 2, where the tensor before it ends");
  EXPECT_EQ(two("[3,5]", "[0,2]"),
            "tensor \"a\" begins at byte 3, expected byte 2, where the tensor before it ends");
  EXPECT_EQ(two("[0,2]", "[2,4]"), "its tensors end at byte 4 of 5 that follow the header");
}

TEST(SafetensorsReader, SurvivesDeepNesting) {
  const std::string deep = "{\"a\":" + std::string(200'000, '[');
  EXPECT_EQ(header_refusal(deep), "its header is not valid JSON");
  const auto closed = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(header_refusal(closed), "tensor \"a\" is not described by an object");
}

TEST(SafetensorsReader, SurvivesEverySingleDamage) {
  const TemporaryFolder folder;
  const Sample sample;
  ASSERT_TRUE(write_safetensors(folder / "w", sample.tensors(), sample.metadata));
  const auto whole = read_file(folder / "w");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(parsed(std::string_view{whole}.substr(0, size))) << "cut to " << size;
  }
  Random random{7};
  for (std::size_t i = 0; i < whole.size(); ++i) {
    auto damaged = whole;
    damaged[i] = static_cast<char>(random.below(256));
    if (const auto result = parsed(damaged)) {
      for (const auto& tensor : result->tensors) {
        EXPECT_LE(tensor.bytes.data() + tensor.bytes.size(),
                  std::as_bytes(std::span{damaged}).data() + damaged.size());
      }
    }
  }
}

}  // namespace
}  // namespace troupe::storage
