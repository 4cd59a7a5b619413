#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <protozero/pbf_message.hpp>
#include <string>
#include <unordered_set>

#include "frontend/infer_codec.h"
#include "frontend/typed_contents.h"

namespace headrace {
namespace {

using protozero::pbf_wire_type;

// Field numbers of ModelInferRequest and its parts (proto/headrace/kserve.proto).
enum class InferField : protozero::pbf_tag_type {
  kModelName = 1,
  kModelVersion = 2,
  kId = 3,
  kParameters = 4,
  kInputs = 5,
  kOutputs = 6,
  kRawInputContents = 7,
};
enum class TensorField : protozero::pbf_tag_type {
  kName = 1,
  kDatatype = 2,
  kShape = 3,
  kParameters = 4,
  kContents = 5,
};
enum class OutputField : protozero::pbf_tag_type { kName = 1, kParameters = 2 };
enum class EntryField : protozero::pbf_tag_type { kKey = 1, kValue = 2 };
enum class ParameterField : protozero::pbf_tag_type {
  kBool = 1,
  kInt64 = 2,
  kString = 3,
  kDouble = 4,
  kUint64 = 5,
};

// Inputs, requested outputs, raw buffers and parameters a request, each: what takes two bytes on the
// wire takes a hundred here.
constexpr std::size_t kMaxItems = 4096;

std::string_view to_view(protozero::data_view data) { return {data.data(), data.size()}; }

std::span<const std::byte> to_bytes(protozero::data_view data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

struct Utf8Error {};

std::string_view string_field(protozero::pbf_reader& reader) {
  const std::string_view text = to_view(reader.get_view());
  if (!valid_utf8(text)) throw Utf8Error();
  return text;
}

template <class Field>
bool is(const protozero::pbf_message<Field>& reader, Field field, pbf_wire_type type) {
  return reader.tag() == field && reader.wire_type() == type;
}

using ParameterValue = decltype(Parameter::value);

// A map entry; no value when none of InferParameter's choices is set.
struct WireParameter {
  std::string_view key;
  std::optional<ParameterValue> value;

  template <class T>
  const T* get() const {
    return value ? std::get_if<T>(&*value) : nullptr;
  }
};

WireParameter decode_parameter(protozero::data_view entry) {
  WireParameter parameter;
  protozero::pbf_message<EntryField> reader(entry);
  while (reader.next()) {
    if (is(reader, EntryField::kKey, pbf_wire_type::length_delimited)) {
      parameter.key = string_field(reader);
    } else if (is(reader, EntryField::kValue, pbf_wire_type::length_delimited)) {
      protozero::pbf_message<ParameterField> value(reader.get_view());
      while (value.next()) {
        if (is(value, ParameterField::kBool, pbf_wire_type::varint)) {
          // Not get_bool(): it looks at the first byte only, and 0 may be written in several.
          parameter.value = value.get_uint64() != 0;
        } else if (is(value, ParameterField::kInt64, pbf_wire_type::varint)) {
          parameter.value = value.get_int64();
        } else if (is(value, ParameterField::kString, pbf_wire_type::length_delimited)) {
          parameter.value = string_field(value);
        } else if (is(value, ParameterField::kDouble, pbf_wire_type::fixed64)) {
          parameter.value = value.get_double();
        } else if (is(value, ParameterField::kUint64, pbf_wire_type::varint)) {
          parameter.value = value.get_uint64();
        } else {
          value.skip();
        }
      }
    } else {
      reader.skip();
    }
  }
  return parameter;
}

Status wrong_parameter(std::string_view key, std::string_view expected) {
  return Status::invalid_argument("invalid value type for '" + std::string(key) +
                                  "' parameter, expected " + std::string(expected) + ".");
}

Status shared_memory_disabled() {
  return Status::unimplemented("Client shared memory is disabled.");
}

// A parameter of the request: the protocol's own keys are checked, users' keys are kept.
Status apply_parameter(const WireParameter& parameter, Request& request) {
  const std::string_view key = parameter.key;
  if (key == "priority") {
    if (const auto* number = parameter.get<int64_t>()) {
      if (*number < 0) {
        return Status::invalid_argument("invalid value for 'priority', expected value >= 0.");
      }
      request.priority = static_cast<uint64_t>(*number);
    } else if (const auto* unsigned_number = parameter.get<uint64_t>()) {
      request.priority = *unsigned_number;
    } else {
      return wrong_parameter(key, "int64_param or uint64_param");
    }
  } else if (key == "timeout") {
    const auto* micros = parameter.get<int64_t>();
    if (micros == nullptr) return wrong_parameter(key, "int64_param");
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1000;
    if (*micros > 0) request.timeout = Nanoseconds(std::min(*micros, kMost) * 1000);
  } else if (key == "sequence_id") {
    if (!parameter.get<int64_t>() && !parameter.get<std::string_view>()) {
      return wrong_parameter(key, "int64_param or string_param");
    }
  } else if (key == "sequence_start" || key == "sequence_end") {
    if (!parameter.get<bool>()) return wrong_parameter(key, "bool_param");
  } else if (key.starts_with("triton_")) {
    if (key != "triton_enable_empty_final_response") {
      return Status::invalid_argument(
          "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
          "following "
          "keys starting with 'triton_' are allowed: triton_enable_empty_final_response");
    }
    if (!parameter.get<bool>()) return wrong_parameter(key, "bool_param");
  } else if (parameter.value) {
    request.parameters.push_back({key, *parameter.value});
  } else {
    return wrong_parameter(key,
                           "bool_param, int64_param, string_param, double_param or uint64_param");
  }
  return {};
}

// Throws when the bytes are no sequence of whole fields.
void check_fields(protozero::data_view bytes) {
  protozero::pbf_reader reader(bytes);
  while (reader.next()) reader.skip();
}

// An input as it stands in the message; its data are found once the whole message is read, since
// raw_input_contents come last.
struct WireInput {
  std::string_view name;
  DType dtype = DType::kInvalid;
  Shape shape;
  protozero::data_view contents;  // the first; see all_contents()
  // Used when there is more than one: protobuf merges them, which is to read one after the other.
  std::string merged;
  bool has_contents = false;
  bool shared_memory = false;

  void add_contents(protozero::data_view more) {
    if (!has_contents) {
      contents = more;
      has_contents = true;
      return;
    }
    // Each must be whole: two halves of a field do not make one.
    if (merged.empty()) {
      check_fields(contents);
      merged.assign(contents.data(), contents.size());
    }
    check_fields(more);
    merged.append(more.data(), more.size());
  }
  protozero::data_view all_contents() const {
    return merged.empty() ? contents : protozero::data_view(merged);
  }
};

bool push_dim(Shape& shape, int64_t dim, bool& too_many) {
  if (!shape.push_back(dim)) too_many = true;
  return !too_many;
}

Status decode_input(protozero::data_view bytes, WireInput& input) {
  bool too_many_dims = false;
  protozero::pbf_message<TensorField> reader(bytes);
  while (reader.next()) {
    if (is(reader, TensorField::kName, pbf_wire_type::length_delimited)) {
      input.name = string_field(reader);
    } else if (is(reader, TensorField::kDatatype, pbf_wire_type::length_delimited)) {
      input.dtype = dtype_from_name(string_field(reader));
    } else if (is(reader, TensorField::kShape, pbf_wire_type::length_delimited)) {
      for (const int64_t dim : reader.get_packed_int64()) push_dim(input.shape, dim, too_many_dims);
    } else if (is(reader, TensorField::kShape, pbf_wire_type::varint)) {
      push_dim(input.shape, reader.get_int64(), too_many_dims);
    } else if (is(reader, TensorField::kParameters, pbf_wire_type::length_delimited)) {
      const WireParameter parameter = decode_parameter(reader.get_view());
      input.shared_memory = input.shared_memory || parameter.key == "shared_memory_region";
    } else if (is(reader, TensorField::kContents, pbf_wire_type::length_delimited)) {
      input.add_contents(reader.get_view());
    } else {
      reader.skip();
    }
  }
  if (too_many_dims) {
    return Status::invalid_argument("input '" + std::string(input.name) + "' has more than " +
                                    std::to_string(Shape::kMaxRank) + " dimensions");
  }
  if (input.shared_memory) return shared_memory_disabled();
  return {};
}

Status decode_output(protozero::data_view bytes, RequestedOutput& output) {
  protozero::pbf_message<OutputField> reader(bytes);
  while (reader.next()) {
    if (is(reader, OutputField::kName, pbf_wire_type::length_delimited)) {
      output.name = string_field(reader);
    } else if (is(reader, OutputField::kParameters, pbf_wire_type::length_delimited)) {
      const WireParameter parameter = decode_parameter(reader.get_view());
      if (parameter.key == "classification") {
        const auto* count = parameter.get<int64_t>();
        if (count == nullptr) return wrong_parameter(parameter.key, "int64_param");
        if (*count <= 0) {
          return Status::invalid_argument(
              "invalid value for 'classification' parameter, expected > 0.");
        }
        output.classification = *count;
      } else if (parameter.key == "shared_memory_region") {
        return shared_memory_disabled();
      }
    } else {
      reader.skip();
    }
  }
  return {};
}

class Decoder {
 public:
  explicit Decoder(Request& request) : request_(request) {}
  ~Decoder() {
    wire_inputs_.clear();
    raw_.clear();
  }

  Status decode() {
    protozero::pbf_message<InferField> reader(request_.message.view().data(),
                                              request_.message.size());
    Status status;
    while (reader.next()) {
      Status one = decode_field(reader);
      // The first error is answered, but the rest must still be protobuf: garbage is INTERNAL.
      if (status.ok() && !one.ok()) status = std::move(one);
    }
    if (!status.ok()) return status;
    return bind_data();
  }

 private:
  Status decode_field(protozero::pbf_message<InferField>& reader) {
    if (reader.wire_type() != pbf_wire_type::length_delimited) {
      reader.skip();
      return {};
    }
    switch (reader.tag()) {
      case InferField::kModelName:
        request_.model_name = string_field(reader);
        return {};
      case InferField::kModelVersion:
        request_.model_version = string_field(reader);
        return {};
      case InferField::kId:
        request_.id = string_field(reader);
        return {};
      case InferField::kParameters:
        if (request_.parameters.size() == kMaxItems) return too_many(reader, "parameters");
        return apply_parameter(decode_parameter(reader.get_view()), request_);
      case InferField::kInputs:
        if (wire_inputs_.size() == kMaxItems) return too_many(reader, "inputs");
        wire_inputs_.emplace_back();
        return decode_input(reader.get_view(), wire_inputs_.back());
      case InferField::kOutputs:
        if (request_.outputs.size() == kMaxItems) return too_many(reader, "outputs");
        request_.outputs.emplace_back();
        return decode_output(reader.get_view(), request_.outputs.back());
      case InferField::kRawInputContents:
        if (raw_.size() == kMaxItems) return too_many(reader, "raw_input_contents");
        raw_.push_back(to_bytes(reader.get_view()));
        return {};
    }
    reader.skip();
    return {};
  }

  static Status too_many(protozero::pbf_message<InferField>& reader, std::string_view what) {
    reader.skip();
    return Status::invalid_argument("a request may have " + std::to_string(kMaxItems) + " " +
                                    std::string(what) + ", this one has more");
  }

  // Whether an input before this one has its name. Called for each in turn.
  bool duplicate(std::size_t index) {
    constexpr std::size_t kFew = 32;  // models have few inputs, hostile requests thousands
    const std::string_view name = wire_inputs_[index].name;
    if (wire_inputs_.size() > kFew) return !names_.insert(name).second;
    const auto end = wire_inputs_.begin() + static_cast<std::ptrdiff_t>(index);
    return std::any_of(wire_inputs_.begin(), end,
                       [name](const WireInput& other) { return other.name == name; });
  }

  std::string of(const WireInput& input) const {
    return "'" + std::string(input.name) + "' for model '" + std::string(request_.model_name) + "'";
  }

  Status check_input(std::size_t index) {
    const WireInput& input = wire_inputs_[index];
    if (duplicate(index)) {
      return Status::invalid_argument("input '" + std::string(input.name) +
                                      "' already exists in request");
    }
    for (const int64_t dim : input.shape) {
      if (dim < 0) {
        return Status::invalid_argument("All input dimensions should be specified for input " +
                                        of(input) + ", got " + input.shape.to_string());
      }
    }
    if (input.has_contents && !raw_.empty()) {
      return Status::invalid_argument(
          "contents field must not be specified when using raw_input_contents for " + of(input));
    }
    if (!input.has_contents && index >= raw_.size()) {
      return Status::invalid_argument("unable to find data for input tensor " + of(input) +
                                      " in request.");
    }
    if (input.has_contents) {
      if (const auto wrong = wrong_typed_field(input.all_contents(), input.dtype)) {
        return Status::invalid_argument("unexpected explicit tensor data for input tensor " +
                                        of(input) + " of type '" + std::string(*wrong) +
                                        "', expected datatype '" +
                                        std::string(dtype_name(input.dtype)) + "'");
      }
    }
    return {};
  }

  // Checks the inputs and gives each its data.
  Status bind_data() {
    std::vector<std::byte> converted;
    struct Converted {
      std::size_t input;
      std::size_t offset;
    };
    std::vector<Converted> moved;
    for (std::size_t i = 0; i < wire_inputs_.size(); ++i) {
      const WireInput& input = wire_inputs_[i];
      Status status = check_input(i);
      if (!status.ok()) return status;
      InputTensor tensor{input.name, {input.dtype, input.shape, {}}};
      if (!input.has_contents) {
        tensor.tensor.data = raw_[i];
      } else {
        const std::size_t offset = converted.size();
        const std::span<const std::byte> view =
            convert_typed_contents(input.all_contents(), input.dtype, converted);
        if (input.merged.empty()) {
          tensor.tensor.data = view;
        } else {
          // `merged` goes with this call.
          converted.insert(converted.end(), view.begin(), view.end());
        }
        if (converted.size() != offset) moved.push_back({i, offset});
      }
      request_.inputs.push_back(tensor);
    }
    if (raw_.size() > wire_inputs_.size()) {
      return Status::invalid_argument("expected " + std::to_string(wire_inputs_.size()) +
                                      " raw_input_contents but got " + std::to_string(raw_.size()) +
                                      " for model '" + std::string(request_.model_name) + "'");
    }
    if (!moved.empty()) {
      request_.converted = BufferRef::allocate(converted.size());
      std::memcpy(request_.converted.data(), converted.data(), converted.size());
      for (std::size_t i = 0; i < moved.size(); ++i) {
        const std::size_t end = i + 1 < moved.size() ? moved[i + 1].offset : converted.size();
        const std::span<const std::byte> all = std::as_const(request_.converted).span();
        request_.inputs[moved[i].input].tensor.data =
            all.subspan(moved[i].offset, end - moved[i].offset);
      }
    }
    return {};
  }

  Request& request_;
  std::unordered_set<std::string_view> names_;  // of many inputs; else empty
  // Reused from request to request on an I/O thread: decoding allocates nothing in the steady state.
  // Empty between requests.
  static thread_local std::vector<WireInput> wire_inputs_;
  static thread_local std::vector<std::span<const std::byte>> raw_;
};

thread_local std::vector<WireInput> Decoder::wire_inputs_;
thread_local std::vector<std::span<const std::byte>> Decoder::raw_;

Status not_a_request() {
  // grpcio's text for a request that does not parse.
  return Status::internal("Exception deserializing request!");
}

}  // namespace

Status decode_infer_request(BufferRef message, Request& request) {
  request.message = std::move(message);
  try {
    return Decoder(request).decode();
  } catch (const protozero::exception&) {
    return not_a_request();
  } catch (const Utf8Error&) {
    return not_a_request();
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted("not enough memory for the typed contents of the request");
  }
}

bool valid_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* const end = p + text.size();
  while (p != end) {
    // Names are ASCII nearly always: eight bytes at a time.
    uint64_t word = 0;
    while (end - p >= 8) {
      std::memcpy(&word, p, 8);
      if ((word & 0x8080808080808080) != 0) break;
      p += 8;
    }
    if (p == end) break;
    if (*p < 0x80) {
      ++p;
      continue;
    }
    // Unicode 15, table 3-7: no overlong forms, no surrogates, nothing past U+10FFFF.
    const unsigned char lead = *p;
    const int trailing = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || end - p <= trailing) return false;
    const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (p[1] < low || p[1] > high) return false;
    for (int i = 2; i <= trailing; ++i) {
      if (p[i] < 0x80 || p[i] > 0xBF) return false;
    }
    p += trailing + 1;
  }
  return true;
}

}  // namespace headrace
