#include "ucx/ucx_header.hpp"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"

#include "ucx/ucx_address.hpp"
#include "ucx/ucx_print.hpp"
#include "ucx/ucx_settings.hpp"

namespace troupe::transport {

const UcxHeader sample{.kind = UcxMessage::settled,
                       .code = Errc::message_truncated,
                       .from = 0x0102030405060708,
                       .lane = 0x1112131415161718,
                       .tag = Tag{0x2122232425262728}};

TEST(UcxHeader, ReadsWhatItWrote) {
  EXPECT_EQ(*read_header(write_header(sample)), sample);
}

TEST(UcxHeader, LooksTheSameOnEveryMachine) {
  const auto bytes = write_header(sample);
  std::string text;
  for (const auto byte : bytes) {
    text += "0123456789abcdef"[std::to_integer<unsigned>(byte) >> 4U];
    text += "0123456789abcdef"[std::to_integer<unsigned>(byte) & 15U];
  }
  EXPECT_EQ(text,
            "74720302070000000807060504030201"
            "18171615141312112827262524232221");
}

/// Reads the sample's bytes with the one at `position` replaced.
std::string refusal_with(std::size_t position, int value) {
  auto bytes = write_header(sample);
  bytes[position] = static_cast<std::byte>(value);
  const auto header = read_header(bytes);
  return header ? "accepted" : header.error().context;
}

TEST(UcxHeader, EveryRuleBrokenIsNamed) {
  const std::string message = "a message between fabrics ";
  EXPECT_EQ(refusal_with(0, 'T'), message + "does not begin with 'tr'");
  EXPECT_EQ(refusal_with(2, 9), message + "has version 9, and this program speaks 3: run one "
                                          "version everywhere");
  EXPECT_EQ(refusal_with(3, 0), message + "is of the unknown kind 0");
  EXPECT_EQ(refusal_with(3, 9), message + "is of the unknown kind 9");
  EXPECT_EQ(refusal_with(3, 1), message + "of kind 1 has the code 7");
  EXPECT_EQ(refusal_with(4, 200), message + "of kind 2 has the code 200");
  EXPECT_EQ(refusal_with(7, 1), message + "has bytes other than zero where nothing belongs");
  const auto bytes = write_header(sample);
  EXPECT_EQ(read_header(std::span{bytes}.first(31)).error().context,
            message + "has a header of 31 bytes instead of 32");
}

TEST(UcxHeader, WhateverIsReadWritesBackToTheSameBytes) {
  constexpr std::uint64_t seed = 20240607;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random{seed};
  std::uint32_t accepted = 0;
  for (int i = 0; i < 100'000; ++i) {
    auto bytes = write_header(sample);
    for (auto changes = random.below(4); changes-- > 0;) {
      bytes[random.below(bytes.size())] = static_cast<std::byte>(random.below(10));
    }
    const auto header = read_header(bytes);
    if (!header) continue;
    ++accepted;
    ASSERT_EQ(write_header(*header), bytes);
  }
  EXPECT_GT(accepted, 1000U);
}

TEST(UcxHeaders, ReadWhatAnEnvelopeHolds) {
  auto message = sample;
  message.kind = UcxMessage::data;
  message.code = Errc::none;
  UcxEnvelope envelope{message};
  EXPECT_EQ(*read_headers(envelope.bytes()), (UcxHeaders{message, std::nullopt}));
  EXPECT_TRUE(std::ranges::equal(envelope.bytes(), write_header(message)));
  envelope.add(sample);
  EXPECT_EQ(*read_headers(envelope.bytes()), (UcxHeaders{message, sample}));
}

TEST(UcxHeaders, EveryRuleBrokenIsNamed) {
  const auto refusal_of = [](const UcxHeader& second) {
    UcxEnvelope envelope{sample};
    envelope.add(second);
    return read_headers(envelope.bytes()).error().context;
  };
  const std::string message = "a message between fabrics ";
  auto second = sample;
  second.kind = UcxMessage::data;
  second.code = Errc::none;
  EXPECT_EQ(refusal_of(second),
            message + "has one of kind 1 travel along, which only verdicts may");
  second = sample;
  ++second.from;
  EXPECT_EQ(refusal_of(second), message + "has a stranger's verdict travel along");
  UcxEnvelope envelope{sample};
  envelope.add(sample);
  const auto both = envelope.bytes();
  EXPECT_EQ(read_headers(both.first(63)).error().context,
            message + "has a header of 63 bytes instead of 32");
  std::vector<std::byte> wrong{both.begin(), both.end()};
  wrong[32] = std::byte{'T'};
  EXPECT_EQ(read_headers(wrong).error().context, message + "does not begin with 'tr'");
}

TEST(UcxOffer, ReadsWhatItWrote) {
  const UcxOffer offer{.address = 0x0102030405060708, .size_bytes = 0x1112131415161718};
  const auto bytes = write_offer(offer);
  EXPECT_EQ(*read_offer(bytes), offer);
  EXPECT_EQ(bytes.front(), std::byte{0x08});
  EXPECT_EQ(bytes.back(), std::byte{0x11});
}

TEST(UcxOffer, EveryRuleBrokenIsNamed) {
  const auto nothing = write_offer({.address = 1});
  EXPECT_EQ(read_offer(nothing).error().context, "a message between fabrics offers nothing");
  EXPECT_EQ(read_offer(std::span{nothing}.first(15)).error().context,
            "a message between fabrics is an offer of 15 bytes instead of 16");
}

TEST(UcxAddress, ReadsWhatItWrote) {
  for (const auto* text : {"ucx1:0123456789abcdef@127.0.0.1:4711", "ucx1:ffffffffffffffff@[::1]:1",
                           "ucx1:0000000000000000@10.1.2.3:65535"}) {
    const auto address = parse_ucx_address(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(to_text(*address), text);
  }
}

TEST(UcxAddress, RefusesEverythingElse) {
  for (const auto* text :
       {"", "ucx1:", "ucx2:0123456789abcdef@127.0.0.1:4711", "ucx1:0123456789abcde@127.0.0.1:4711",
        "ucx1:0123456789abcdeg@127.0.0.1:4711", "ucx1:0123456789abcdef@127.0.0.1",
        "ucx1:0123456789abcdef@localhost:4711", "ucx1:0123456789abcdef@127.0.0.1:0",
        "ucx1:0123456789abcdef@127.0.0.1:65536", "ucx1:0123456789abcdef@127.0.0.1:4711 ",
        "ucx1:0123456789abcdef@[::1:4711", "ucx1:0123456789abcdef:4711@127.0.0.1"}) {
    const auto address = parse_ucx_address(text);
    ASSERT_FALSE(address) << text;
    EXPECT_EQ(address.error().code, Errc::invalid_config);
    EXPECT_EQ(address.error().context,
              "'" + std::string{text}
                  + "' is not the address of a fabric, which looks like "
                    "ucx1:0123456789abcdef@127.0.0.1:4711: pass what address() returned");
  }
}

TEST(UcxAddress, AnInterfaceThatDoesNotExistIsNamedBesideThoseThatDo) {
  const auto address = address_of_interface("nowhere0");
  ASSERT_FALSE(address);
  EXPECT_EQ(address.error().code, Errc::invalid_config);
  EXPECT_TRUE(address.error().context.starts_with(
      "the network interface 'nowhere0' does not exist or has no address: choose one of "));
  EXPECT_NE(address.error().context.find("lo"), std::string::npos);
  EXPECT_TRUE(address_of_interface("lo"));
}

TEST(UcxPrint, NamesTheTransportsOfAContextAndOfAnEndpoint) {
  EXPECT_EQ(transports_in("#     component 3  :  posix\n"
                          "#            md 0  :  component 0  self \n"
                          "#      resource 0  :  md 0  dev 0  flags -- self/memory0\n"
                          "#      resource 1  :  md 1  dev 1  flags -- tcp/eth0.7\n"),
            (std::vector<std::string>{"self/memory0", "tcp/eth0"}));
  EXPECT_EQ(
      transports_in("#  lane[0]:  2:posix/memory.0 md[2]  -> md[2]/posix/sysdev[255] am am_bw#0\n"
                    "#  lane[1]:  1:tcp/lo.0 md[1]  -> md[1]/tcp/sysdev[255] keepalive\n"
                    "#  am_send: 0..<egr/short>..93..<egr/bcopy>..(inf)\n"),
      (std::vector<std::string>{"posix/memory", "tcp/lo"}));
  EXPECT_TRUE(transports_in("").empty());
}

TEST(UcxSettings, AskForSharedMemoryOnlyWhereItIsAllowed) {
  UcxOptions tcp;
  tcp.network_interface = "eth0";
  tcp.shared_memory = false;
  EXPECT_EQ(settings_for(tcp), (std::vector<UcxSetting>{{"TLS", "tcp,self"},
                                                        {"NET_DEVICES", "eth0"},
                                                        {"TCP_PUT_ENABLE", "n", "PUT_ENABLE"},
                                                        {"ZCOPY_THRESH", "inf"},
                                                        {"TCP_TX_SEG_SIZE", "64kb", "TX_SEG_SIZE"},
                                                        {"KEEPALIVE_INTERVAL", "1000ms"}}));
  EXPECT_EQ(settings_for({}), (std::vector<UcxSetting>{{"TLS", "posix,tcp,self"},
                                                       {"NET_DEVICES", "lo"},
                                                       {"TCP_PUT_ENABLE", "n", "PUT_ENABLE"},
                                                       {"ZCOPY_THRESH", "inf"},
                                                       {"TCP_TX_SEG_SIZE", "64kb", "TX_SEG_SIZE"},
                                                       {"KEEPALIVE_INTERVAL", "1000ms"},
                                                       {"MM_ERROR_HANDLING", "y"},
                                                       {"MM_FIFO_SIZE", "256"}}));
}

TEST(UcxSettings, TheUsersOwnEnvironmentWins) {
  setenv("UCX_TLS", "tcp", 1);
  const auto left = without_users_own(settings_for({}));
  unsetenv("UCX_TLS");
  EXPECT_EQ(left.size(), settings_for({}).size() - 1);
  EXPECT_EQ(std::ranges::find(left, "TLS", &UcxSetting::name), left.end());
}

}  // namespace troupe::transport
