#include "rpc/grpc_codec.h"

#include <doctest/doctest.h>

#include <cctype>
#include <random>
#include <string>

using namespace headrace;
using namespace std::chrono_literals;

TEST_CASE("grpc-timeout: one to eight digits and a unit") {
  CHECK(parse_grpc_timeout("100m") == Nanoseconds(100ms));
  CHECK(parse_grpc_timeout("1H") == Nanoseconds(1h));
  CHECK(parse_grpc_timeout("2M") == Nanoseconds(2min));
  CHECK(parse_grpc_timeout("3S") == Nanoseconds(3s));
  CHECK(parse_grpc_timeout("4u") == Nanoseconds(4us));
  CHECK(parse_grpc_timeout("5n") == Nanoseconds(5));
  CHECK(parse_grpc_timeout("0S") == Nanoseconds(0));
  CHECK(parse_grpc_timeout("00000001S") == Nanoseconds(1s));
  CHECK(parse_grpc_timeout("99999999S") == Nanoseconds(99999999s));
  // 99,999,999 h are 11,400 years, which 63 bits of ns do not hold.
  CHECK(parse_grpc_timeout("99999999H") == Nanoseconds::max());
  CHECK(parse_grpc_timeout("99999999M") == Nanoseconds(99999999min));
  for (const char* bad : {"", "m", "1", "1x", "1s", "1h", "-1S", "+1S", " 1S", "1S ", "1.5S", "1 S",
                          "100000000S", "123456789n", "S1", "1SS", "0x1S",
                          "\xff"
                          "S",
                          "1M1S"}) {
    CAPTURE(bad);
    CHECK_FALSE(parse_grpc_timeout(bad));
  }
  CHECK_FALSE(parse_grpc_timeout(std::string_view("1\0S", 3)));
}

TEST_CASE("grpc-message: everything outside 0x20-0x7E and '%' is encoded, upper case") {
  CHECK(percent_encode("") == "");
  CHECK(percent_encode("plain text ~!") == "plain text ~!");
  CHECK(percent_encode("100%") == "100%25");
  CHECK(percent_encode("  a b  ") == "%20 a b %20");
  CHECK(percent_encode(" ") == "%20");
  CHECK(percent_encode("\t\r\n\x7f") == "%09%0D%0A%7F");
  CHECK(percent_encode("\xc3\xbc \xe2\x82\xac") == "%C3%BC %E2%82%AC");
  CHECK(percent_encode(std::string_view("\0", 1)) == "%00");
  for (int i = 0; i < 256; ++i) {
    const auto c = static_cast<char>(i);
    const std::string out = percent_encode(std::string_view(&c, 1));
    if (i > 0x20 && i <= 0x7e && i != '%') {
      CHECK(out == std::string(1, c));
    } else {
      REQUIRE(out.size() == 3);
      CHECK(out[0] == '%');
      CHECK(std::stoi(out.substr(1), nullptr, 16) == i);
      CHECK_FALSE((std::islower(out[1]) || std::islower(out[2])));
    }
  }
}

TEST_CASE("base64: RFC 4648's examples, emitted without padding") {
  const std::pair<const char*, const char*> kExamples[] = {
      {"", ""},           {"f", "Zg"},          {"fo", "Zm8"},         {"foo", "Zm9v"},
      {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : kExamples) {
    CHECK(base64_encode(plain) == encoded);
    std::string padded = encoded;
    while (padded.size() % 4 != 0) padded += '=';
    CHECK(base64_decode(encoded) == plain);
    CHECK(base64_decode(padded) == plain);
  }
}

TEST_CASE("base64: any bytes survive; what is not base64 is refused") {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 80, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const std::string encoded = base64_encode(bytes);
    REQUIRE(encoded.find('=') == std::string::npos);
    REQUIRE(base64_decode(encoded) == bytes);
  }
  for (const char* bad :
       {"A", "AAAAA", "A===", "Zg===", "Z g", "Zm9v\n", "Zm-_", "Z=g=", "=Zg", "\xc3\xbc"}) {
    CAPTURE(bad);
    CHECK_FALSE(base64_decode(bad));
  }
}
