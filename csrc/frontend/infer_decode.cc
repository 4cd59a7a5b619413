#include <cstring>
#include <limits>
#include <new>
#include <protozero/pbf_message.hpp>
#include <string>

#include "frontend/infer_codec.h"

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
enum class ContentsField : protozero::pbf_tag_type {
  kBool = 1,
  kInt = 2,
  kInt64 = 3,
  kUint = 4,
  kUint64 = 5,
  kFp32 = 6,
  kFp64 = 7,
  kBytes = 8,
};

// The typed field that carries a datatype; FP16 and BF16 come raw only.
ContentsField contents_field_of(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return ContentsField::kBool;
    case DType::kInt8:
    case DType::kInt16:
    case DType::kInt32:
      return ContentsField::kInt;
    case DType::kInt64:
      return ContentsField::kInt64;
    case DType::kUint8:
    case DType::kUint16:
    case DType::kUint32:
      return ContentsField::kUint;
    case DType::kUint64:
      return ContentsField::kUint64;
    case DType::kFp32:
      return ContentsField::kFp32;
    case DType::kFp64:
      return ContentsField::kFp64;
    case DType::kBytes:
      return ContentsField::kBytes;
    case DType::kFp16:
    case DType::kBf16:
    case DType::kInvalid:
      break;
  }
  return ContentsField{0};
}

// What Triton calls the datatype of a typed field in its error text.
std::string_view contents_datatype(ContentsField field) {
  switch (field) {
    case ContentsField::kBool:
      return "BOOL";
    case ContentsField::kInt:
      return "INT32";
    case ContentsField::kInt64:
      return "INT64";
    case ContentsField::kUint:
      return "UINT32";
    case ContentsField::kUint64:
      return "UINT64";
    case ContentsField::kFp32:
      return "FP32";
    case ContentsField::kFp64:
      return "FP64";
    case ContentsField::kBytes:
      return "BYTES";
  }
  return "<invalid>";
}

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

Parameter decode_parameter(protozero::data_view entry) {
  Parameter parameter;
  protozero::pbf_message<EntryField> reader(entry);
  while (reader.next()) {
    if (is(reader, EntryField::kKey, pbf_wire_type::length_delimited)) {
      parameter.key = string_field(reader);
    } else if (is(reader, EntryField::kValue, pbf_wire_type::length_delimited)) {
      protozero::pbf_message<ParameterField> value(reader.get_view());
      while (value.next()) {
        if (is(value, ParameterField::kBool, pbf_wire_type::varint)) {
          parameter.value = value.get_bool();
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
Status apply_parameter(const Parameter& parameter, Request& request) {
  const std::string_view key = parameter.key;
  const auto& value = parameter.value;
  if (key == "priority") {
    if (const auto* number = std::get_if<int64_t>(&value)) {
      if (*number < 0) {
        return Status::invalid_argument("invalid value for 'priority', expected value >= 0.");
      }
      request.priority = static_cast<uint64_t>(*number);
    } else if (const auto* unsigned_number = std::get_if<uint64_t>(&value)) {
      request.priority = *unsigned_number;
    } else {
      return wrong_parameter(key, "int64_param or uint64_param");
    }
  } else if (key == "timeout") {
    const auto* micros = std::get_if<int64_t>(&value);
    if (micros == nullptr) return wrong_parameter(key, "int64_param");
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1000;
    if (*micros > 0) request.timeout = Nanoseconds(std::min(*micros, kMost) * 1000);
  } else if (key == "sequence_id") {
    if (!std::holds_alternative<int64_t>(value) &&
        !std::holds_alternative<std::string_view>(value)) {
      return wrong_parameter(key, "int64_param or string_param");
    }
  } else if (key == "sequence_start" || key == "sequence_end") {
    if (!std::holds_alternative<bool>(value)) return wrong_parameter(key, "bool_param");
  } else if (key.starts_with("triton_")) {
    if (key != "triton_enable_empty_final_response") {
      return Status::invalid_argument(
          "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following "
          "keys starting with 'triton_' are allowed: triton_enable_empty_final_response");
    }
    if (!std::holds_alternative<bool>(value)) return wrong_parameter(key, "bool_param");
  } else {
    request.parameters.push_back(parameter);
  }
  return {};
}

// An input as it stands in the message; its data are found once the whole message is read, since
// raw_input_contents come last.
struct WireInput {
  std::string_view name;
  DType dtype = DType::kInvalid;
  Shape shape;
  protozero::data_view contents;
  bool has_contents = false;
  bool shared_memory = false;
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
      const Parameter parameter = decode_parameter(reader.get_view());
      input.shared_memory = input.shared_memory || parameter.key == "shared_memory_region";
    } else if (is(reader, TensorField::kContents, pbf_wire_type::length_delimited)) {
      input.contents = reader.get_view();
      input.has_contents = true;
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
      const Parameter parameter = decode_parameter(reader.get_view());
      if (parameter.key == "classification") {
        const auto* count = std::get_if<int64_t>(&parameter.value);
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

// Calls `each(value)` for every element of a typed field, packed or not.
template <class Each>
void for_each_varint(protozero::data_view contents, ContentsField field, Each&& each) {
  protozero::pbf_message<ContentsField> reader(contents);
  while (reader.next()) {
    if (is(reader, field, pbf_wire_type::length_delimited)) {
      for (const uint64_t value : reader.get_packed_uint64()) each(value);
    } else if (is(reader, field, pbf_wire_type::varint)) {
      each(reader.get_uint64());
    } else {
      reader.skip();
    }
  }
}

// Calls `each(bytes)` for every run of fixed-size elements of a typed field.
template <class Each>
void for_each_fixed(protozero::data_view contents, ContentsField field, pbf_wire_type single,
                    std::size_t size, Each&& each) {
  protozero::pbf_message<ContentsField> reader(contents);
  while (reader.next()) {
    if (is(reader, field, pbf_wire_type::length_delimited)) {
      const std::span<const std::byte> run = to_bytes(reader.get_view());
      if (run.size() % size != 0) throw protozero::invalid_length_exception();
      each(run);
    } else if (is(reader, field, single)) {
      const std::byte* start = reinterpret_cast<const std::byte*>(reader.data().data());
      reader.skip();
      each(std::span<const std::byte>(start, size));
    } else {
      reader.skip();
    }
  }
}

// Appends an input's typed contents to `out` in the raw form. Fixed-size fields that came as one packed
// run stay a view: then nothing is appended and `view` is set.
void convert_contents(const WireInput& input, std::vector<std::byte>& out,
                      std::span<const std::byte>& view) {
  const ContentsField field = contents_field_of(input.dtype);
  const std::size_t size = dtype_size(input.dtype);
  const auto append = [&out](const void* bytes, std::size_t n) {
    const auto* start = static_cast<const std::byte*>(bytes);
    out.insert(out.end(), start, start + n);
  };
  if (field == ContentsField::kFp32 || field == ContentsField::kFp64) {
    const pbf_wire_type single =
        field == ContentsField::kFp32 ? pbf_wire_type::fixed32 : pbf_wire_type::fixed64;
    std::size_t runs = 0;
    for_each_fixed(input.contents, field, single, size, [&](std::span<const std::byte> run) {
      ++runs;
      view = run;
    });
    if (runs <= 1) return;
    view = {};
    for_each_fixed(input.contents, field, single, size,
                   [&](std::span<const std::byte> run) { append(run.data(), run.size()); });
  } else if (field == ContentsField::kBytes) {
    protozero::pbf_message<ContentsField> reader(input.contents);
    while (reader.next()) {
      if (is(reader, field, pbf_wire_type::length_delimited)) {
        const protozero::data_view element = reader.get_view();
        const auto length = static_cast<uint32_t>(element.size());
        append(&length, sizeof(length));
        append(element.data(), element.size());
      } else {
        reader.skip();
      }
    }
  } else if (field == ContentsField::kBool) {
    for_each_varint(input.contents, field, [&](uint64_t value) {
      out.push_back(static_cast<std::byte>(value != 0));
    });
  } else {
    // Little-endian: the low bytes of a value come first.
    for_each_varint(input.contents, field, [&](uint64_t value) { append(&value, size); });
  }
}

// A typed field that is not the datatype's own; nullopt when there is none.
std::optional<ContentsField> wrong_contents_field(const WireInput& input) {
  const ContentsField expected = contents_field_of(input.dtype);
  protozero::pbf_message<ContentsField> reader(input.contents);
  while (reader.next()) {
    const auto number = static_cast<uint32_t>(reader.tag());
    if (number >= 1 && number <= 8 && reader.tag() != expected) {
      const bool empty_run =
          reader.wire_type() == pbf_wire_type::length_delimited &&
          reader.tag() != ContentsField::kBytes && reader.get_view().empty();
      if (!empty_run) return static_cast<ContentsField>(number);
      continue;
    }
    reader.skip();
  }
  return std::nullopt;
}

class Decoder {
 public:
  explicit Decoder(Request& request) : request_(request) {}

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
        return apply_parameter(decode_parameter(reader.get_view()), request_);
      case InferField::kInputs:
        wire_inputs_.emplace_back();
        return decode_input(reader.get_view(), wire_inputs_.back());
      case InferField::kOutputs:
        request_.outputs.emplace_back();
        return decode_output(reader.get_view(), request_.outputs.back());
      case InferField::kRawInputContents:
        raw_.push_back(to_bytes(reader.get_view()));
        return {};
    }
    reader.skip();
    return {};
  }

  std::string of(const WireInput& input) const {
    return "'" + std::string(input.name) + "' for model '" + std::string(request_.model_name) + "'";
  }

  Status check_input(std::size_t index) const {
    const WireInput& input = wire_inputs_[index];
    for (std::size_t i = 0; i < index; ++i) {
      if (wire_inputs_[i].name == input.name) {
        return Status::invalid_argument("input '" + std::string(input.name) +
                                        "' already exists in request");
      }
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
      if (const std::optional<ContentsField> wrong = wrong_contents_field(input)) {
        return Status::invalid_argument("unexpected explicit tensor data for input tensor " +
                                        of(input) + " of type '" +
                                        std::string(contents_datatype(*wrong)) +
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
        convert_contents(input, converted, tensor.tensor.data);
        if (converted.size() != offset) moved.push_back({i, offset});
      }
      request_.inputs.push_back(tensor);
    }
    if (raw_.size() > wire_inputs_.size()) {
      return Status::invalid_argument(
          "expected " + std::to_string(wire_inputs_.size()) + " raw_input_contents but got " +
          std::to_string(raw_.size()) + " for model '" + std::string(request_.model_name) + "'");
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
  // Reused from request to request on an I/O thread: decoding allocates nothing in the steady state.
  static thread_local std::vector<WireInput> wire_inputs_storage_;
  static thread_local std::vector<std::span<const std::byte>> raw_storage_;
  std::vector<WireInput>& wire_inputs_ = cleared(wire_inputs_storage_);
  std::vector<std::span<const std::byte>>& raw_ = cleared(raw_storage_);

  template <class T>
  static std::vector<T>& cleared(std::vector<T>& storage) {
    storage.clear();
    return storage;
  }
};

thread_local std::vector<WireInput> Decoder::wire_inputs_storage_;
thread_local std::vector<std::span<const std::byte>> Decoder::raw_storage_;

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
