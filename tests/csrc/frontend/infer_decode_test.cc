#include <doctest/doctest.h>

#include <random>
#include <set>

#include "frontend/infer_codec.h"
#include "frontend/messages.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

class Ignore final : public Completion {
 public:
  void complete(RequestPtr) noexcept override {}
};

// A decoded message. The request owns the bytes that its views look into.
struct Decoded {
  explicit Decoded(std::string_view bytes)
      : request(new Request(completion)),
        status(decode_infer_request(buffer_of(bytes), *request)) {}
  std::string data(std::size_t input) const {
    return text_of_bytes(request->inputs.at(input).tensor.data);
  }
  bool views_message(std::size_t input) const {
    const auto data = request->inputs.at(input).tensor.data;
    const auto all = std::as_const(request->message).span();
    return data.data() >= all.data() && data.data() + data.size() <= all.data() + all.size();
  }

  static inline Ignore completion;
  RequestPtr request;
  Status status;
};

StatusCode code_of(std::string_view bytes) { return Decoded(bytes).status.code(); }
std::string text_of(std::string_view bytes) { return Decoded(bytes).status.message(); }

void check_refused(std::string_view bytes, StatusCode code, const std::string& text) {
  const Decoded decoded(bytes);
  CHECK(decoded.status.code() == code);
  CHECK(decoded.status.message() == text);
}
void check_invalid(std::string_view bytes, const std::string& text) {
  check_refused(bytes, StatusCode::kInvalidArgument, text);
}
void check_garbage(std::string_view bytes) {
  check_refused(bytes, StatusCode::kInternal, "Exception deserializing request!");
}

std::string named(const std::string& rest = "") { return field(1, "m") + rest; }

std::string varints(uint32_t number, std::initializer_list<int64_t> values, bool packed) {
  return message([&](auto& w) {
    if (packed) return w.add_packed_int64(number, values.begin(), values.end());
    for (const int64_t value : values) w.add_int64(number, value);
  });
}
template <class T>
std::string fixed(uint32_t number, std::initializer_list<T> values, bool packed) {
  return message([&](auto& w) {
    for (const T value : values) {
      if (packed) continue;
      if constexpr (sizeof(T) == 4)
        w.add_float(number, value);
      else
        w.add_double(number, value);
    }
    const std::string run = raw(values);
    if (packed) w.add_bytes(number, run.data(), run.size());
  });
}

}  // namespace

TEST_CASE("an empty message is a request without anything") {
  const Decoded decoded("");
  CHECK(decoded.status.ok());
  CHECK(decoded.request->model_name.empty());
  CHECK(decoded.request->inputs.empty());
}

TEST_CASE("every field of a request arrives, as views into the message") {
  const std::string bytes =
      field(1, "model") + field(2, "3") + field(3, "id-7") + parameter("user", string_value("x")) +
      parameter("n", int64_value(-5)) + input("A", "FP32", {2, 3}) + input("B", "BYTES", {1}) +
      field(6, field(1, "OUT") + field(2, entry("classification", int64_value(3)))) +
      field(6, field(1, "OUT2")) + raw_contents(std::string(24, 'a')) +
      raw_contents(std::string("\x01\0\0\0z", 5));
  const Decoded decoded(bytes);
  REQUIRE(decoded.status.ok());
  const Request& request = *decoded.request;
  CHECK(request.model_name == "model");
  CHECK(request.model_version == "3");
  CHECK(request.id == "id-7");
  REQUIRE(request.inputs.size() == 2);
  CHECK(request.inputs[0].name == "A");
  CHECK(request.inputs[0].tensor.dtype == DType::kFp32);
  CHECK(request.inputs[0].tensor.shape == Shape{2, 3});
  CHECK(decoded.data(0) == std::string(24, 'a'));
  CHECK(decoded.data(1).size() == 5);
  CHECK(decoded.views_message(0));
  CHECK(decoded.views_message(1));
  REQUIRE(request.outputs.size() == 2);
  CHECK(request.outputs[0].name == "OUT");
  CHECK(request.outputs[0].classification == 3);
  CHECK(request.outputs[1].classification == 0);
  REQUIRE(request.parameters.size() == 2);
  CHECK(request.parameters[0].key == "user");
  CHECK(std::get<std::string_view>(request.parameters[0].value) == "x");
  CHECK(std::get<int64_t>(request.parameters[1].value) == -5);
  CHECK_FALSE(request.converted);
}

TEST_CASE("raw data of every datatype are taken as they are") {
  for (const char* dtype : {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32",
                            "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"}) {
    CAPTURE(dtype);
    const Decoded decoded(named(input("X", dtype, {3}) + raw_contents("0123456789")));
    REQUIRE(decoded.status.ok());
    CHECK(dtype_name(decoded.request->inputs[0].tensor.dtype) == dtype);
    CHECK(decoded.data(0) == "0123456789");  // its size is the model version's to check
    CHECK(decoded.views_message(0));
  }
  for (const char* dtype : {"", "fp32", "FP31", "STRING", "TYPE_FP32"}) {
    const Decoded decoded(named(input("X", dtype, {3}) + raw_contents("0123")));
    REQUIRE(decoded.status.ok());
    CHECK(decoded.request->inputs[0].tensor.dtype == DType::kInvalid);
  }
}

TEST_CASE("typed contents of every datatype, packed or not, become the raw form") {
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  for (const bool packed : {true, false}) {
    CAPTURE(packed);
    struct Case {
      const char* dtype;
      std::string contents;
      std::string expected;
    };
    const std::vector<Case> cases = {
        {"BOOL", varints(1, {0, 1, 2, kMin, 256}, packed), raw<uint8_t>({0, 1, 1, 1, 1})},
        {"INT8", varints(2, {1, -1, 127, -128}, packed), raw<int8_t>({1, -1, 127, -128})},
        {"INT16", varints(2, {1, -1, 32767, -32768}, packed), raw<int16_t>({1, -1, 32767, -32768})},
        {"INT32", varints(2, {1, -1, 2147483647, -2147483648LL}, packed),
         raw<int32_t>({1, -1, 2147483647, std::numeric_limits<int32_t>::min()})},
        {"INT64", varints(3, {1, -1, 1LL << 62, kMin}, packed),
         raw<int64_t>({1, -1, 1LL << 62, kMin})},
        {"UINT8", varints(4, {0, 255}, packed), raw<uint8_t>({0, 255})},
        {"UINT16", varints(4, {0, 65535}, packed), raw<uint16_t>({0, 65535})},
        {"UINT32", varints(4, {0, 4294967295}, packed), raw<uint32_t>({0, 4294967295})},
        {"UINT64", varints(5, {0, -1}, packed), raw<uint64_t>({0, UINT64_MAX})},
        {"FP32", fixed<float>(6, {0.5F, -0.0F, 1e38F}, packed), raw<float>({0.5F, -0.0F, 1e38F})},
        {"FP64", fixed<double>(7, {0.5, -0.0, 1e300}, packed), raw<double>({0.5, -0.0, 1e300})},
        {"BYTES", field(8, "ab") + field(8, "") + field(8, std::string("\0", 1)),
         std::string("\x02\0\0\0ab\0\0\0\0\x01\0\0\0\0", 15)},
    };
    for (const Case& c : cases) {
      CAPTURE(c.dtype);
      const Decoded decoded(named(typed("X", c.dtype, {4}, c.contents)));
      REQUIRE(decoded.status.ok());
      CHECK(decoded.data(0) == c.expected);
    }
  }
}

TEST_CASE("typed contents without elements are zero bytes") {
  for (const char* dtype : {"BOOL", "INT8", "INT64", "UINT32", "UINT64", "FP32", "FP64", "BYTES",
                            "FP16", "BF16", "NOPE"}) {
    CAPTURE(dtype);
    const Decoded decoded(named(typed("X", dtype, {0}, "")));
    REQUIRE(decoded.status.ok());
    CHECK(decoded.data(0).empty());
  }
  // Runs of other fields that are empty are no data either.
  const Decoded decoded(named(typed("X", "FP32", {0}, field(3, "") + field(6, "") + field(1, ""))));
  CHECK(decoded.status.ok());
}

TEST_CASE("one packed run of FP32 or FP64 is not copied") {
  const Decoded one(named(typed("X", "FP32", {2}, fixed<float>(6, {1, 2}, true))));
  REQUIRE(one.status.ok());
  CHECK(one.views_message(0));
  CHECK_FALSE(one.request->converted);
}

TEST_CASE("a typed field may come in several runs and in several `contents`") {
  const std::string split = fixed<float>(6, {1, 2}, true) + fixed<float>(6, {3}, false) +
                            field(6, "") + fixed<float>(6, {4}, true);
  const Decoded runs(named(typed("X", "FP32", {4}, split)));
  REQUIRE(runs.status.ok());
  CHECK(runs.data(0) == raw<float>({1, 2, 3, 4}));

  // protobuf merges a message field that comes twice; repeated fields are put end to end.
  const auto twice = [](std::string_view dtype, const std::string& a, const std::string& b) {
    return named(input("X", dtype, {4}, field(5, a) + field(5, b)));
  };
  const auto data_of = [](const std::string& bytes) {
    const Decoded decoded(bytes);
    REQUIRE(decoded.status.ok());
    return decoded.data(0);
  };
  const std::string ab = fixed<float>(6, {1, 2}, true);
  const std::string cd = fixed<float>(6, {3, 4}, true);
  CHECK(data_of(twice("FP32", ab, cd)) == raw<float>({1, 2, 3, 4}));
  // Two halves of a field are no field.
  const Decoded halves(twice("UINT64", "X", "\x01"));
  CHECK(halves.status.code() == StatusCode::kInternal);
  CHECK(data_of(twice("FP32", "", cd)) == raw<float>({3, 4}));
  CHECK(data_of(twice("FP32", ab, "")) == raw<float>({1, 2}));
  CHECK(data_of(twice("FP32", "", "")) == "");
  CHECK(data_of(twice("INT64", varints(3, {1}, true), varints(3, {2}, false))) ==
        raw<int64_t>({1, 2}));
  CHECK(data_of(twice("BYTES", field(8, "a"), field(8, "b"))) ==
        std::string("\x01\0\0\0a\x01\0\0\0b", 10));
  check_invalid(twice("FP32", ab, varints(3, {1}, true)),
                "unexpected explicit tensor data for input tensor 'X' for model 'm' of type "
                "'INT64', expected datatype 'FP32'");
}

TEST_CASE("several typed inputs keep their own data") {
  const Decoded decoded(named(typed("A", "INT32", {2}, varints(2, {1, 2}, true)) +
                              typed("B", "FP32", {1}, fixed<float>(6, {5}, true)) +
                              typed("C", "BYTES", {1}, field(8, "xyz")) +
                              typed("D", "INT8", {0}, "") +
                              typed("E", "UINT64", {1}, varints(5, {9}, false))));
  REQUIRE(decoded.status.ok());
  CHECK(decoded.data(0) == raw<int32_t>({1, 2}));
  CHECK(decoded.data(1) == raw<float>({5}));
  CHECK(decoded.data(2) == std::string("\x03\0\0\0xyz", 7));
  CHECK(decoded.data(3).empty());
  CHECK(decoded.data(4) == raw<uint64_t>({9}));
}

TEST_CASE("shapes come packed, not packed, and in pieces") {
  const auto shape_of = [](const std::string& shape) {
    const Decoded decoded(
        named(field(5, field(1, "X") + field(2, "INT8") + shape) + raw_contents("")));
    REQUIRE(decoded.status.ok());
    return decoded.request->inputs[0].tensor.shape;
  };
  CHECK(shape_of("") == Shape{});
  CHECK(shape_of(field(3, "")) == Shape{});
  CHECK(shape_of(varints(3, {2, 300}, true)) == Shape{2, 300});
  CHECK(shape_of(varints(3, {2, 300}, false)) == Shape{2, 300});
  CHECK(shape_of(varints(3, {2}, true) + varints(3, {3}, false) + varints(3, {4, 5}, true)) ==
        Shape{2, 3, 4, 5});
}

TEST_CASE("shapes that no tensor can have are refused") {
  check_invalid(
      named(input("X", "INT8", {-1, 16}) + raw_contents("a")),
      "All input dimensions should be specified for input 'X' for model 'm', got [-1,16]");
  check_invalid(
      named(input("X", "INT8", {std::numeric_limits<int64_t>::min()}) + raw_contents("a")),
      "All input dimensions should be specified for input 'X' for model 'm', got "
      "[-9223372036854775808]");
  const std::string sixteen = varints(3, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true);
  const std::string x = field(1, "X") + field(2, "INT8");
  CHECK(code_of(named(field(5, x + sixteen) + raw_contents("a"))) == StatusCode::kOk);
  for (const bool packed : {true, false}) {
    check_invalid(named(field(5, x + sixteen + varints(3, {1}, packed)) + raw_contents("a")),
                  "input 'X' has more than 16 dimensions");
  }
}

TEST_CASE("unknown fields are skipped wherever they are") {
  const std::string unknown = message([](auto& w) {
    w.add_uint64(15, 1);
    w.add_fixed32(16, 1);
    w.add_fixed64(2000, 1);
    w.add_string(536870911, "x");
  });
  const Decoded decoded(
      unknown +
      named(unknown +
            field(5, unknown +
                         tensor("X", "INT32", {1},
                                field(5, unknown + varints(2, {7}, true) + unknown) +
                                    field(4, unknown + entry("k", unknown))) +
                         unknown) +
            field(6, field(1, "Y") + unknown) +
            field(4, unknown + field(1, "p") + field(2, unknown + bool_value(true)) + unknown)) +
      unknown);
  REQUIRE(decoded.status.ok());
  CHECK(decoded.request->model_name == "m");
  CHECK(decoded.data(0) == raw<int32_t>({7}));
  CHECK(decoded.request->outputs[0].name == "Y");
  CHECK(std::get<bool>(decoded.request->parameters[0].value));
}

TEST_CASE("a known number with another wire type is an unknown field, as for protobuf") {
  // Field 1 of every message as a varint, a fixed32 and a fixed64.
  const std::string odd = message([](auto& w) {
    w.add_uint64(1, 5);
    w.add_fixed32(2, 5);
    w.add_fixed64(5, 5);
    w.add_fixed32(7, 5);
  });
  const Decoded decoded(
      odd + named(odd + field(5, odd + tensor("X", "INT32", {1}, field(5, varints(2, {7}, true)))) +
                  field(6, odd + field(1, "Y"))));
  REQUIRE(decoded.status.ok());
  CHECK(decoded.request->inputs[0].name == "X");
  CHECK(decoded.data(0) == raw<int32_t>({7}));

  // Typed fields: a fixed32 is no element of int_contents, a varint none of fp32_contents.
  const std::string wrong_wire = message([](auto& w) {
    w.add_fixed32(1, 1);
    w.add_fixed32(2, 1);
    w.add_fixed64(3, 1);
    w.add_uint64(6, 1);
    w.add_fixed32(7, 1);
    w.add_uint64(8, 1);
  });
  const Decoded contents(named(typed("X", "INT32", {1}, wrong_wire + varints(2, {7}, true))));
  REQUIRE(contents.status.ok());
  CHECK(contents.data(0) == raw<int32_t>({7}));
  const Decoded floats(named(typed("X", "FP32", {1}, wrong_wire + fixed<float>(6, {7}, true))));
  REQUIRE(floats.status.ok());
  CHECK(floats.data(0) == raw<float>({7}));
  CHECK(code_of(named(parameter("p", message([](auto& w) { w.add_fixed32(1, 1); })))) ==
        StatusCode::kInvalidArgument);  // a parameter without a value
}

TEST_CASE("of a scalar field that comes twice the last one counts") {
  const Decoded decoded(field(1, "old") + field(2, "1") + field(3, "old") + field(1, "new") +
                        field(2, "2") + field(3, "new") +
                        field(5, tensor("old", "INT8", {}) + tensor("new", "FP32", {1})) +
                        field(6, field(1, "old") + field(1, "new")) +
                        field(4, field(1, "old") + field(2, int64_value(1)) + field(1, "new") +
                                     field(2, bool_value(false)) + field(2, string_value("s"))) +
                        raw_contents("0123"));
  REQUIRE(decoded.status.ok());
  CHECK(decoded.request->model_name == "new");
  CHECK(decoded.request->model_version == "2");
  CHECK(decoded.request->id == "new");
  CHECK(decoded.request->inputs[0].name == "new");
  CHECK(decoded.request->inputs[0].tensor.dtype == DType::kFp32);
  CHECK(decoded.request->outputs[0].name == "new");
  CHECK(decoded.request->parameters[0].key == "new");
  CHECK(std::get<std::string_view>(decoded.request->parameters[0].value) == "s");
}

TEST_CASE("data: raw and typed do not mix, and every input has one of them") {
  const std::string contents = field(5, varints(2, {1}, true));
  check_invalid(named(input("X", "INT32", {1}, contents) + raw_contents("0123")),
                "contents field must not be specified when using raw_input_contents for 'X' for "
                "model 'm'");
  check_invalid(named(input("X", "INT32", {1})),
                "unable to find data for input tensor 'X' for model 'm' in request.");
  check_invalid(named(input("X", "INT32", {1}) + input("Y", "INT32", {1}) + raw_contents("0123")),
                "unable to find data for input tensor 'Y' for model 'm' in request.");
  check_invalid(named(input("X", "INT32", {1}) + raw_contents("0123") + raw_contents("4567")),
                "expected 1 raw_input_contents but got 2 for model 'm'");
  check_invalid(named(raw_contents("")), "expected 0 raw_input_contents but got 1 for model 'm'");
  // Some typed, some without anything.
  check_invalid(named(input("X", "INT32", {1}, contents) + input("Y", "INT32", {1})),
                "unable to find data for input tensor 'Y' for model 'm' in request.");
}

TEST_CASE("typed data in another datatype's field are refused") {
  const auto refused = [](const char* dtype, const std::string& contents, const char* type) {
    check_invalid(named(typed("X", dtype, {1}, contents)),
                  "unexpected explicit tensor data for input tensor 'X' for model 'm' of type '" +
                      std::string(type) + "', expected datatype '" +
                      std::string(dtype_name(dtype_from_name(dtype))) + "'");
  };
  for (const bool packed : {true, false}) {
    refused("FP32", varints(3, {1}, packed), "INT64");
    refused("INT64", varints(2, {1}, packed), "INT32");
    refused("INT8", varints(4, {1}, packed), "UINT32");
    refused("UINT32", varints(1, {1}, packed), "BOOL");
    refused("BOOL", varints(5, {1}, packed), "UINT64");
    refused("FP64", fixed<float>(6, {1}, packed), "FP32");
    refused("BYTES", fixed<double>(7, {1}, packed), "FP64");
    refused("FP16", varints(4, {1}, packed), "UINT32");
    refused("BF16", fixed<float>(6, {1}, packed), "FP32");
    refused("NOPE", varints(2, {1}, packed), "INT32");
    refused("INT32", varints(2, {1}, packed) + varints(3, {1}, packed), "INT64");
  }
  refused("INT32", field(8, "x"), "BYTES");
  refused("INT32", field(8, ""), "BYTES");  // one element, the empty string
}

TEST_CASE("an input that comes twice is refused, however many there are") {
  check_invalid(named(input("X", "INT8", {1}) + input("X", "INT8", {1}) + raw_contents("a") +
                      raw_contents("b")),
                "input 'X' already exists in request");
  for (const int count : {31, 32, 33, 4095}) {
    std::string bytes = named();
    for (int i = 0; i < count; ++i) bytes += input("i" + std::to_string(i), "INT8", {1});
    for (int i = 0; i <= count; ++i) bytes += raw_contents("a");
    check_invalid(bytes + input("i7", "INT8", {1}), "input 'i7' already exists in request");
    CHECK(code_of(bytes + input("other", "INT8", {1})) == StatusCode::kOk);
  }
}

TEST_CASE("repeated parts are bounded: they take more memory here than on the wire") {
  constexpr int kMost = 4096;
  const auto times = [](int n, const std::string& part) {
    std::string bytes;
    for (int i = 0; i < n; ++i) bytes += part;
    return bytes;
  };
  struct Part {
    std::string bytes;
    std::string what;
  };
  const std::vector<Part> parts = {{field(5, ""), "inputs"},
                                   {field(6, ""), "outputs"},
                                   {field(7, ""), "raw_input_contents"},
                                   {parameter("k", bool_value(true)), "parameters"}};
  for (const Part& part : parts) {
    CAPTURE(part.what);
    const std::string expected = "a request may have 4096 " + part.what + ", this one has more";
    CHECK(text_of(named(times(kMost, part.bytes))) != expected);
    CHECK(text_of(named(times(kMost + 1, part.bytes))) == expected);
    // A message of a few MB that claims a million of them.
    const Decoded decoded(named(times(1'000'000, part.bytes)));
    CHECK(decoded.status.message() == expected);
    CHECK(decoded.request->outputs.capacity() <= 2 * kMost);
    CHECK(decoded.request->parameters.capacity() <= 2 * kMost);
  }
}

TEST_CASE("a bool may be written in more bytes than it needs") {
  const auto bool_of = [](std::string_view varint) {
    const Decoded decoded(named(parameter("b", "\x08" + std::string(varint))));
    REQUIRE(decoded.status.ok());
    return std::get<bool>(decoded.request->parameters.at(0).value);
  };
  CHECK_FALSE(bool_of({"\x80\x00", 2}));
  CHECK(bool_of({"\x80\x01", 2}));
  CHECK(bool_of({"\x81\x00", 2}));
}

TEST_CASE("the protocol's own parameters") {
  const Decoded decoded(named(
      parameter("priority", uint64_value(2)) + parameter("timeout", int64_value(1500)) +
      parameter("sequence_id", string_value("s")) + parameter("sequence_start", bool_value(false)) +
      parameter("sequence_end", bool_value(true)) +
      parameter("triton_enable_empty_final_response", bool_value(true))));
  REQUIRE(decoded.status.ok());
  CHECK(decoded.request->priority == 2);
  CHECK(decoded.request->timeout == Microseconds(1500));
  CHECK(decoded.request->parameters.empty());
  CHECK(Decoded(named(parameter("priority", int64_value(7)))).request->priority == 7);
  CHECK(Decoded(named(parameter("sequence_id", int64_value(0)))).status.ok());
  // No timeout, and the longest there is.
  CHECK_FALSE(Decoded(named(parameter("timeout", int64_value(0)))).request->timeout);
  CHECK_FALSE(Decoded(named(parameter("timeout", int64_value(-1)))).request->timeout);
  CHECK(*Decoded(named(parameter("timeout", int64_value(INT64_MAX)))).request->timeout >
        std::chrono::hours(24 * 365));
}

TEST_CASE("the protocol's own parameters of the wrong type are refused with Triton's texts") {
  struct Kind {
    const char* name;
    std::string value;
  };
  const std::vector<Kind> kinds = {{"none", ""},
                                   {"bool", bool_value(true)},
                                   {"int64", int64_value(1)},
                                   {"string", string_value("1")},
                                   {"double", double_value(1)},
                                   {"uint64", uint64_value(1)}};
  struct Key {
    const char* name;
    std::set<std::string> allowed;
    const char* expected;
  };
  for (const Key& key : std::initializer_list<Key>{
           {"priority", {"int64", "uint64"}, "int64_param or uint64_param"},
           {"timeout", {"int64"}, "int64_param"},
           {"sequence_id", {"int64", "string"}, "int64_param or string_param"},
           {"sequence_start", {"bool"}, "bool_param"},
           {"sequence_end", {"bool"}, "bool_param"},
           {"triton_enable_empty_final_response", {"bool"}, "bool_param"},
           {"anything",
            {"bool", "int64", "string", "double", "uint64"},
            "bool_param, int64_param, string_param, double_param or uint64_param"}}) {
    for (const Kind& kind : kinds) {
      CAPTURE(key.name);
      CAPTURE(kind.name);
      const std::string bytes = named(parameter(key.name, kind.value));
      if (key.allowed.contains(kind.name)) {
        CHECK(code_of(bytes) == StatusCode::kOk);
      } else {
        check_invalid(bytes, "invalid value type for '" + std::string(key.name) +
                                 "' parameter, expected " + key.expected + ".");
      }
    }
  }
  check_invalid(named(parameter("priority", int64_value(-1))),
                "invalid value for 'priority', expected value >= 0.");
  check_invalid(named(parameter("triton_other", int64_value(1))),
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
                "following keys starting with 'triton_' are allowed: "
                "triton_enable_empty_final_response");
  CHECK(code_of(named(parameter("tritonless", int64_value(1)))) == StatusCode::kOk);
}

TEST_CASE("parameters of an output") {
  const auto output = [](const std::string& key, const std::string& value) {
    return named(field(6, field(1, "Y") + field(2, entry(key, value))));
  };
  CHECK(Decoded(output("classification", int64_value(INT64_MAX)))
            .request->outputs[0]
            .classification == INT64_MAX);
  check_invalid(output("classification", uint64_value(1)),
                "invalid value type for 'classification' parameter, expected int64_param.");
  check_invalid(output("classification", ""),
                "invalid value type for 'classification' parameter, expected int64_param.");
  for (const int64_t count : {int64_t{0}, int64_t{-1}, INT64_MIN}) {
    check_invalid(output("classification", int64_value(count)),
                  "invalid value for 'classification' parameter, expected > 0.");
  }
  CHECK(code_of(output("binary_data", bool_value(true))) == StatusCode::kOk);
}

TEST_CASE("shared memory is refused, for inputs and outputs") {
  check_refused(named(field(5, tensor("X", "INT8", {1},
                                      field(4, entry("shared_memory_region", string_value("r")))))),
                StatusCode::kUnimplemented, "Client shared memory is disabled.");
  check_refused(
      named(field(6, field(1, "Y") + field(2, entry("shared_memory_region", string_value("r"))))),
      StatusCode::kUnimplemented, "Client shared memory is disabled.");
}

TEST_CASE("the first error is told; what is no protobuf is told before any") {
  const std::string bad_priority = parameter("priority", string_value("x"));
  const std::string bad_timeout = parameter("timeout", string_value("x"));
  CHECK(text_of(named(bad_priority + bad_timeout)).find("'priority'") != std::string::npos);
  CHECK(text_of(named(bad_timeout + bad_priority)).find("'timeout'") != std::string::npos);
  // Parameters before data, data in the order of the inputs.
  CHECK(text_of(named(input("X", "INT8", {-1}) + bad_timeout)).find("'timeout'") !=
        std::string::npos);
  CHECK(text_of(named(input("X", "INT8", {1}) + input("Y", "INT8", {-1}))).find("'X'") !=
        std::string::npos);
  check_garbage(named(bad_priority) + "\xff");
  check_garbage(named(input("X", "INT8", {-1}) + field(5, "\xff")));
  // The name comes last on the wire: the answer still needs it.
  const Decoded late(bad_priority + field(1, "m"));
  CHECK(late.status.code() == StatusCode::kInvalidArgument);
  CHECK(late.request->model_name == "m");
}

TEST_CASE("strings must be UTF-8, as protobuf wants it") {
  const std::string bad = "\xff\xfe";
  check_garbage(field(1, bad));
  check_garbage(named(field(2, bad)));
  check_garbage(named(field(3, bad)));
  check_garbage(named(input(bad, "INT8", {1})));
  check_garbage(named(input("X", bad, {1})));
  check_garbage(named(field(6, field(1, bad))));
  check_garbage(named(parameter(bad, bool_value(true))));
  check_garbage(named(parameter("k", string_value(bad))));
  check_garbage(named(field(5, tensor("X", "INT8", {1}, field(4, entry(bad, ""))))));
  // bytes fields may hold anything.
  CHECK(code_of(named(input("X", "BYTES", {1}) + raw_contents(bad))) == StatusCode::kOk);
  CHECK(code_of(named(typed("X", "BYTES", {1}, field(8, bad)))) == StatusCode::kOk);
  CHECK(Decoded(field(1, "mod\xc3\xa8le \xe2\x82\xac \xf0\x9f\x8f\x81")).status.ok());
}

TEST_CASE("valid_utf8 follows the table of well-formed sequences") {
  // Every sequence of the table's bounds, at every place of an 8-byte word.
  struct Case {
    const char* bytes;
    bool valid;
  };
  for (const Case& c : std::initializer_list<Case>{{"", true},
                                                   {"a", true},
                                                   {"\x7f", true},
                                                   {"\x80", false},
                                                   {"\xbf", false},
                                                   {"\xc0\x80", false},
                                                   {"\xc1\xbf", false},
                                                   {"\xc2\x80", true},
                                                   {"\xdf\xbf", true},
                                                   {"\xc2", false},
                                                   {"\xc2\x7f", false},
                                                   {"\xc2\xc0", false},
                                                   {"\xe0\x9f\xbf", false},
                                                   {"\xe0\xa0\x80", true},
                                                   {"\xe0\xa0", false},
                                                   {"\xed\x9f\xbf", true},
                                                   {"\xed\xa0\x80", false},
                                                   {"\xee\x80\x80", true},
                                                   {"\xef\xbf\xbf", true},
                                                   {"\xef\xbf\xc0", false},
                                                   {"\xf0\x8f\xbf\xbf", false},
                                                   {"\xf0\x90\x80\x80", true},
                                                   {"\xf4\x8f\xbf\xbf", true},
                                                   {"\xf4\x90\x80\x80", false},
                                                   {"\xf5\x80\x80\x80", false},
                                                   {"\xf0\x90\x80", false},
                                                   {"\xff", false},
                                                   {"\xfe", false}}) {
    for (std::size_t before = 0; before < 17; ++before) {
      for (const std::size_t after : {0, 1, 9}) {
        const std::string text = std::string(before, 'x') + c.bytes + std::string(after, 'y');
        CAPTURE(text);
        // An exact allocation: the sanitizer sees a read past the end.
        const std::vector<char> exact(text.begin(), text.end());
        CHECK(valid_utf8({exact.data(), exact.size()}) == c.valid);
      }
    }
  }
  CHECK(valid_utf8(std::string_view("\0", 1)));
}

TEST_CASE("what is no protobuf is INTERNAL") {
  check_garbage("\x07");                           // wire type 7
  check_garbage(std::string("\0", 1));             // field number 0
  check_garbage("\x0a\x05xx");                     // longer than the message
  check_garbage("\x0a\xff\xff\xff\xff\x0f");       // 4 GiB long
  check_garbage(std::string(11, '\xff'));          // an endless varint
  check_garbage(named(field(5, "\x1a\x01\x80")));  // a packed shape cut in a varint
  check_garbage(named(typed("X", "INT64", {1}, field(3, "\x80"))));
  check_garbage(named(typed("X", "FP32", {1}, field(6, "abc"))));
  check_garbage(named(typed("X", "FP64", {1}, field(7, "abcd"))));
  check_garbage(named(typed("X", "FP32", {1},
                            "\x35"
                            "abc")));  // a fixed32 of three bytes
  check_garbage("\x0c");               // the end of a group that never began
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string noise(random() % 64, '\0');
    for (char& c : noise) c = static_cast<char>(random());
    const StatusCode code = code_of(noise);
    CHECK((code == StatusCode::kInternal || code == StatusCode::kOk ||
           code == StatusCode::kInvalidArgument));
  }
}

namespace {

// Uses every part of the message, and is accepted.
std::string rich_message() {
  return field(1, "model") + field(2, "1") + field(3, "r\xc3\xa9q") +
         parameter("priority", uint64_value(1)) + parameter("timeout", int64_value(99)) +
         parameter("user", string_value("v")) + parameter("d", double_value(0.5)) +
         typed("A", "INT32", {2, 2}, varints(2, {1, -2, 3, 400}, true)) +
         typed("B", "FP32", {2}, fixed<float>(6, {1, 2}, true)) +
         typed("C", "FP64", {2}, fixed<double>(7, {1, 2}, false)) +
         typed("D", "BYTES", {2}, field(8, "one") + field(8, "")) +
         typed("E", "BOOL", {1}, varints(1, {1}, false)) +
         field(6, field(1, "Y") + field(2, entry("classification", int64_value(2))));
}

// The views of a decoded request lie in memory that the request holds.
void touch_everything(const Decoded& decoded) {
  const Request& request = *decoded.request;
  uint64_t sum = request.model_name.size() + request.model_version.size();
  for (const char c : request.id) sum += static_cast<unsigned char>(c);
  for (const InputTensor& tensor : request.inputs) {
    for (const char c : tensor.name) sum += static_cast<unsigned char>(c);
    for (const std::byte b : tensor.tensor.data) sum += static_cast<uint8_t>(b);
  }
  for (const RequestedOutput& output : request.outputs) sum += output.name.size();
  for (const Parameter& p : request.parameters) {
    for (const char c : p.key) sum += static_cast<unsigned char>(c);
    if (const auto* text = std::get_if<std::string_view>(&p.value)) {
      for (const char c : *text) sum += static_cast<unsigned char>(c);
    }
  }
  CHECK(sum < UINT64_MAX);
}

void check_survives(std::string_view bytes) {
  const Decoded decoded(bytes);
  const StatusCode code = decoded.status.code();
  CHECK((code == StatusCode::kOk || code == StatusCode::kInternal ||
         code == StatusCode::kInvalidArgument || code == StatusCode::kUnimplemented));
  if (code == StatusCode::kOk) touch_everything(decoded);
}

}  // namespace

TEST_CASE("property: a message cut at any byte is INTERNAL or a shorter request, never a crash") {
  for (const std::string& whole :
       {rich_message(), named(input("X", "FP32", {2, 3}) + raw_contents(std::string(24, 'x')))}) {
    REQUIRE(code_of(whole) == StatusCode::kOk);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      check_survives(std::string_view(whole).substr(0, size));
    }
  }
}

TEST_CASE("property: mutated messages never crash and never leave their memory") {
  const std::string whole = rich_message();
  std::mt19937 random(20261122);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (unsigned edits = 1 + random() % 4; edits > 0; --edits) {
      const std::size_t at = random() % bytes.size();
      const std::size_t length = random() % std::min<std::size_t>(16, bytes.size() - at) + 1;
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 2:
          bytes.erase(at, length);
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, length));
          break;
        default:
          bytes.insert(at, std::string(length, "\xff\x80\x7f\x00"[random() % 4]));
      }
      if (bytes.empty()) bytes = "x";
    }
    check_survives(bytes);
  }
}

TEST_CASE("a decoded request keeps nothing of the one before") {
  RequestPtr request(new Request(Decoded::completion));
  REQUIRE(decode_infer_request(buffer_of(rich_message()), *request).ok());
  request->reset();
  REQUIRE(decode_infer_request(buffer_of(named()), *request).ok());
  CHECK(request->inputs.empty());
  CHECK(request->outputs.empty());
  CHECK(request->parameters.empty());
  CHECK(request->id.empty());
  CHECK(request->priority == 0);
  CHECK_FALSE(request->timeout);
  CHECK_FALSE(request->converted);
  // Nor of one that failed halfway.
  request->reset();
  REQUIRE_FALSE(decode_infer_request(buffer_of(rich_message() + "\xff"), *request).ok());
  request->reset();
  REQUIRE(decode_infer_request(buffer_of(named()), *request).ok());
  CHECK(request->inputs.empty());
}
