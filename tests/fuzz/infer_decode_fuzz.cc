// decode_infer_request against a second reader of the same message, written here from protobuf's wire
// format and the .proto alone, plainly and with copies:
//   - what the reader refuses, the decoder does not accept;
//   - what the reader accepts, the decoder does not call malformed (INTERNAL);
//   - what both accept is the same: every name, shape, parameter and byte.
// No comparison where protobuf and protozero are known to differ in what they tolerate: tags and lengths
// of more than five bytes, lengths past 32 bits (protozero drops the bits above), field numbers 19000
// to 19999, the unused bits of a varint's tenth byte, groups.
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/request.h"
#include "frontend/infer_codec.h"
#include "fuzz/input.h"

using namespace headrace;
using namespace headrace::fuzz;

namespace {

struct Malformed {};
struct Unspecified {};

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  int type = 0;
  uint64_t value = 0;      // varint, fixed
  std::string_view bytes;  // length-delimited
  bool is(uint32_t n, int t) const { return number == n && type == t; }
};

uint64_t varint(std::string_view& rest, std::size_t tolerated) {
  uint64_t value = 0;
  for (std::size_t i = 0; i < 10; ++i) {
    if (i == rest.size()) throw Malformed();
    const auto byte = static_cast<uint8_t>(rest[i]);
    value |= uint64_t{byte & 0x7fU} << (7 * i);
    if (byte < 0x80) {
      rest.remove_prefix(i + 1);
      if (i == 9 && byte > 1) throw Unspecified();
      if (i >= tolerated) throw Unspecified();
      return value;
    }
  }
  throw Malformed();
}

uint64_t fixed(std::string_view& rest, std::size_t size) {
  if (rest.size() < size) throw Malformed();
  uint64_t value = 0;
  std::memcpy(&value, rest.data(), size);
  rest.remove_prefix(size);
  return value;
}

std::optional<Field> next(std::string_view& rest) {
  if (rest.empty()) return std::nullopt;
  const uint64_t tag = varint(rest, 5);
  if (tag > UINT32_MAX) throw Unspecified();
  Field field;
  field.number = static_cast<uint32_t>(tag >> 3);
  field.type = static_cast<int>(tag & 7);
  if (field.number == 0) throw Malformed();
  if (field.number >= 19000 && field.number <= 19999) throw Unspecified();
  switch (field.type) {
    case kVarint:
      field.value = varint(rest, 10);
      return field;
    case kFixed64:
      field.value = fixed(rest, 8);
      return field;
    case kBytes: {
      const uint64_t size = varint(rest, 5);
      if (size > UINT32_MAX) throw Unspecified();
      if (size > rest.size()) throw Malformed();
      field.bytes = rest.substr(0, size);
      rest.remove_prefix(size);
      return field;
    }
    case kFixed32:
      field.value = fixed(rest, 4);
      return field;
    case 3:
    case 4:
      throw Unspecified();
    default:
      throw Malformed();
  }
}

template <class Each>
void each_field(std::string_view bytes, Each&& each) {
  while (const std::optional<Field> field = next(bytes)) each(*field);
}

// Code points, one at a time.
void check_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto at = [&](std::size_t k) {
      if (i + k >= text.size()) throw Malformed();
      const auto byte = static_cast<uint8_t>(text[i + k]);
      if (k != 0 && (byte & 0xC0) != 0x80) throw Malformed();
      return uint32_t{byte};
    };
    const uint32_t lead = at(0);
    if (lead < 0x80) {
      i += 1;
    } else if (lead >> 5 == 6) {
      if (((lead & 0x1f) << 6 | (at(1) & 0x3f)) < 0x80) throw Malformed();
      i += 2;
    } else if (lead >> 4 == 14) {
      const uint32_t point = (lead & 0xf) << 12 | (at(1) & 0x3f) << 6 | (at(2) & 0x3f);
      if (point < 0x800 || (point >= 0xD800 && point < 0xE000)) throw Malformed();
      i += 3;
    } else if (lead >> 3 == 30) {
      const uint32_t point =
          (lead & 7) << 18 | (at(1) & 0x3f) << 12 | (at(2) & 0x3f) << 6 | (at(3) & 0x3f);
      if (point < 0x10000 || point > 0x10FFFF) throw Malformed();
      i += 4;
    } else {
      throw Malformed();
    }
  }
}

std::string text_of(const Field& field) {
  check_utf8(field.bytes);
  return std::string(field.bytes);
}

using Value = std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string>;

std::pair<std::string, Value> read_parameter(std::string_view bytes) {
  std::string key;
  Value value;
  each_field(bytes, [&](const Field& entry) {
    if (entry.is(1, kBytes)) key = text_of(entry);
    if (!entry.is(2, kBytes)) return;
    each_field(entry.bytes, [&](const Field& choice) {
      if (choice.is(1, kVarint)) value = choice.value != 0;
      if (choice.is(2, kVarint)) value = static_cast<int64_t>(choice.value);
      if (choice.is(3, kBytes)) value = text_of(choice);
      if (choice.is(4, kFixed64)) {
        double number = 0;
        std::memcpy(&number, &choice.value, 8);
        value = number;
      }
      if (choice.is(5, kVarint)) value = choice.value;
    });
  });
  return {key, value};
}

// InferTensorContents, each field in the raw form of its own type.
struct Contents {
  std::map<uint32_t, std::vector<uint64_t>> numbers;
  std::vector<std::string> strings;
};

void read_contents(std::string_view bytes, Contents& contents) {
  each_field(bytes, [&](const Field& field) {
    const uint32_t n = field.number;
    if (n >= 1 && n <= 5) {
      if (field.type == kVarint) contents.numbers[n].push_back(field.value);
      if (field.type == kBytes) {
        for (std::string_view rest = field.bytes; !rest.empty();) {
          contents.numbers[n].push_back(varint(rest, 10));
        }
      }
    } else if (n == 6 || n == 7) {
      const std::size_t size = n == 6 ? 4 : 8;
      if (field.type == (n == 6 ? kFixed32 : kFixed64)) contents.numbers[n].push_back(field.value);
      if (field.type == kBytes) {
        if (field.bytes.size() % size != 0) throw Malformed();
        for (std::string_view rest = field.bytes; !rest.empty();) {
          contents.numbers[n].push_back(fixed(rest, size));
        }
      }
    } else if (field.is(8, kBytes)) {
      contents.strings.emplace_back(field.bytes);
    }
  });
}

struct Tensor {
  std::string name;
  std::string datatype;
  std::vector<int64_t> shape;
  bool has_contents = false;
  Contents contents;
};

struct Output {
  std::string name;
  std::map<std::string, Value> parameters;
};

struct Message {
  std::string model;
  std::string version;
  std::string id;
  std::vector<std::pair<std::string, Value>> parameters;
  std::vector<Tensor> inputs;
  std::vector<Output> outputs;
  std::vector<std::string> raw;
};

Tensor read_input(std::string_view bytes) {
  Tensor tensor;
  each_field(bytes, [&](const Field& field) {
    if (field.is(1, kBytes)) tensor.name = text_of(field);
    if (field.is(2, kBytes)) tensor.datatype = text_of(field);
    if (field.is(3, kVarint)) tensor.shape.push_back(static_cast<int64_t>(field.value));
    if (field.is(3, kBytes)) {
      for (std::string_view rest = field.bytes; !rest.empty();) {
        tensor.shape.push_back(static_cast<int64_t>(varint(rest, 10)));
      }
    }
    if (field.is(4, kBytes)) read_parameter(field.bytes);
    if (field.is(5, kBytes)) {
      tensor.has_contents = true;
      read_contents(field.bytes, tensor.contents);
    }
  });
  return tensor;
}

Message read(std::string_view bytes) {
  Message message;
  each_field(bytes, [&](const Field& field) {
    if (field.is(1, kBytes)) message.model = text_of(field);
    if (field.is(2, kBytes)) message.version = text_of(field);
    if (field.is(3, kBytes)) message.id = text_of(field);
    if (field.is(4, kBytes)) message.parameters.push_back(read_parameter(field.bytes));
    if (field.is(5, kBytes)) message.inputs.push_back(read_input(field.bytes));
    if (field.is(6, kBytes)) {
      Output output;
      each_field(field.bytes, [&](const Field& part) {
        if (part.is(1, kBytes)) output.name = text_of(part);
        if (part.is(2, kBytes)) {
          auto [key, value] = read_parameter(part.bytes);
          output.parameters[key] = value;
        }
      });
      message.outputs.push_back(std::move(output));
    }
    if (field.is(7, kBytes)) message.raw.emplace_back(field.bytes);
  });
  return message;
}

std::string_view view_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The bytes that a tensor of this datatype has when it came with typed contents.
std::string raw_of(const Contents& contents, DType dtype) {
  static const std::map<DType, uint32_t> kFields = {
      {DType::kBool, 1},  {DType::kInt8, 2},   {DType::kInt16, 2},  {DType::kInt32, 2},
      {DType::kInt64, 3}, {DType::kUint8, 4},  {DType::kUint16, 4}, {DType::kUint32, 4},
      {DType::kFp32, 6},  {DType::kUint64, 5}, {DType::kFp64, 7}};
  std::string raw;
  const auto append = [&raw](uint64_t value, std::size_t size) {
    raw.append(reinterpret_cast<const char*>(&value), size);
  };
  if (dtype == DType::kBytes) {
    for (const std::string& text : contents.strings) {
      append(text.size(), 4);
      raw += text;
    }
    return raw;
  }
  const auto field = kFields.find(dtype);
  if (field == kFields.end()) return raw;
  const auto values = contents.numbers.find(field->second);
  if (values == contents.numbers.end()) return raw;
  for (const uint64_t value : values->second) {
    append(dtype == DType::kBool ? uint64_t{value != 0} : value, dtype_size(dtype));
  }
  return raw;
}

bool same(const Value& wire, const decltype(Parameter::value)& value) {
  return std::visit(
      [&](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, std::string_view>) {
          const auto* text = std::get_if<std::string>(&wire);
          return text != nullptr && *text == held;
        } else if constexpr (std::is_same_v<T, double>) {
          const auto* number = std::get_if<double>(&wire);
          return number != nullptr && std::memcmp(number, &held, sizeof(held)) == 0;
        } else {
          const auto* other = std::get_if<T>(&wire);
          return other != nullptr && *other == held;
        }
      },
      value);
}

// Keys that the protocol itself has a meaning for are not passed on.
bool own_key(std::string_view key) {
  return key == "priority" || key == "timeout" || key == "sequence_id" || key == "sequence_start" ||
         key == "sequence_end" || key.starts_with("triton_");
}

void compare(const Message& message, const Request& request) {
  FUZZ_CHECK(message.model == request.model_name);
  FUZZ_CHECK(message.version == request.model_version);
  FUZZ_CHECK(message.id == request.id);
  FUZZ_CHECK(message.inputs.size() == request.inputs.size());
  for (std::size_t i = 0; i < message.inputs.size(); ++i) {
    const Tensor& wire = message.inputs[i];
    const InputTensor& input = request.inputs[i];
    FUZZ_CHECK(wire.name == input.name);
    FUZZ_CHECK(dtype_from_name(wire.datatype) == input.tensor.dtype);
    FUZZ_CHECK(std::equal(wire.shape.begin(), wire.shape.end(), input.tensor.shape.begin(),
                          input.tensor.shape.end()));
    const std::string data =
        wire.has_contents ? raw_of(wire.contents, input.tensor.dtype) : message.raw.at(i);
    FUZZ_CHECK(data == view_of(input.tensor.data));
  }
  FUZZ_CHECK(message.outputs.size() == request.outputs.size());
  for (std::size_t i = 0; i < message.outputs.size(); ++i) {
    FUZZ_CHECK(message.outputs[i].name == request.outputs[i].name);
  }
  std::size_t kept = 0;
  for (const auto& [key, value] : message.parameters) {
    if (own_key(key)) continue;
    FUZZ_CHECK(kept < request.parameters.size());
    FUZZ_CHECK(request.parameters[kept].key == key);
    FUZZ_CHECK(same(value, request.parameters[kept].value));
    ++kept;
  }
  FUZZ_CHECK(kept == request.parameters.size());
}

struct Nobody final : Completion {
  void complete(RequestPtr) noexcept override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  static Nobody nobody;
  static Request request(nobody);  // reused, as in the server
  BufferRef buffer = BufferRef::allocate(size);
  if (size != 0) std::memcpy(buffer.data(), data, size);
  const Status status = decode_infer_request(buffer, request);
  FUZZ_CHECK(status.ok() || status.code() == StatusCode::kInternal ||
             status.code() == StatusCode::kInvalidArgument ||
             status.code() == StatusCode::kUnimplemented);
  try {
    const Message message = read({reinterpret_cast<const char*>(data), size});
    FUZZ_CHECK(status.code() != StatusCode::kInternal);
    if (status.ok()) compare(message, request);
  } catch (const Malformed&) {
    FUZZ_CHECK(!status.ok());
  } catch (const Unspecified&) {
  }
  request.reset();
  return 0;
}
