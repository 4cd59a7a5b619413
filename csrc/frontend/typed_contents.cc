#include "frontend/typed_contents.h"

#include <protozero/pbf_message.hpp>

namespace headrace {
namespace {

using protozero::pbf_wire_type;

// Field numbers of InferTensorContents (proto/headrace/kserve.proto).
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
  return ContentsField{0};  // FP16 and BF16 come raw only
}

// A typed field's datatype in Triton's words, and the wire type of one element.
struct FieldKind {
  std::string_view datatype;
  pbf_wire_type single = pbf_wire_type::varint;
};

std::optional<FieldKind> kind_of(ContentsField field) {
  switch (field) {
    case ContentsField::kBool:
      return FieldKind{"BOOL", pbf_wire_type::varint};
    case ContentsField::kInt:
      return FieldKind{"INT32", pbf_wire_type::varint};
    case ContentsField::kInt64:
      return FieldKind{"INT64", pbf_wire_type::varint};
    case ContentsField::kUint:
      return FieldKind{"UINT32", pbf_wire_type::varint};
    case ContentsField::kUint64:
      return FieldKind{"UINT64", pbf_wire_type::varint};
    case ContentsField::kFp32:
      return FieldKind{"FP32", pbf_wire_type::fixed32};
    case ContentsField::kFp64:
      return FieldKind{"FP64", pbf_wire_type::fixed64};
    case ContentsField::kBytes:
      return FieldKind{"BYTES", pbf_wire_type::length_delimited};
  }
  return std::nullopt;  // a field that we do not know
}

using Reader = protozero::pbf_message<ContentsField>;

bool is(const Reader& reader, ContentsField field, pbf_wire_type type) {
  return reader.tag() == field && reader.wire_type() == type;
}

void append(std::vector<std::byte>& out, const void* bytes, std::size_t n) {
  const auto* start = static_cast<const std::byte*>(bytes);
  out.insert(out.end(), start, start + n);
}

// Calls `each(value)` for every element, packed or not.
template <class Each>
void for_each_varint(protozero::data_view contents, ContentsField field, Each&& each) {
  Reader reader(contents);
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

// Calls `each(bytes)` for every run of fixed-size elements.
template <class Each>
void for_each_fixed(protozero::data_view contents, ContentsField field, pbf_wire_type single,
                    std::size_t size, Each&& each) {
  Reader reader(contents);
  while (reader.next()) {
    const auto* start = reinterpret_cast<const std::byte*>(reader.data().data());
    if (is(reader, field, pbf_wire_type::length_delimited)) {
      const protozero::data_view run = reader.get_view();
      if (run.size() % size != 0) throw protozero::invalid_length_exception();
      each(std::span(reinterpret_cast<const std::byte*>(run.data()), run.size()));
    } else if (is(reader, field, single)) {
      reader.skip();
      each(std::span(start, size));
    } else {
      reader.skip();
    }
  }
}

}  // namespace

std::optional<std::string_view> wrong_typed_field(protozero::data_view contents, DType dtype) {
  const ContentsField expected = contents_field_of(dtype);
  Reader reader(contents);
  while (reader.next()) {
    const pbf_wire_type type = reader.wire_type();
    const std::optional<FieldKind> kind = kind_of(reader.tag());
    const bool packed = kind && type == pbf_wire_type::length_delimited && type != kind->single;
    // With another wire type it is an unknown field, for protobuf as for us.
    if (!kind || reader.tag() == expected || (type != kind->single && !packed)) {
      reader.skip();
      continue;
    }
    // An empty run is a field without data.
    if (!packed || !reader.get_view().empty()) return kind->datatype;
  }
  return std::nullopt;
}

std::span<const std::byte> convert_typed_contents(protozero::data_view contents, DType dtype,
                                                  std::vector<std::byte>& out) {
  const ContentsField field = contents_field_of(dtype);
  const std::size_t size = dtype_size(dtype);
  if (field == ContentsField::kFp32 || field == ContentsField::kFp64) {
    const pbf_wire_type single = kind_of(field)->single;
    std::size_t runs = 0;
    std::span<const std::byte> view;
    for_each_fixed(contents, field, single, size, [&](std::span<const std::byte> run) {
      ++runs;
      view = run;
    });
    if (runs <= 1) return view;
    for_each_fixed(contents, field, single, size,
                   [&](std::span<const std::byte> run) { append(out, run.data(), run.size()); });
  } else if (field == ContentsField::kBytes) {
    Reader reader(contents);
    while (reader.next()) {
      if (is(reader, field, pbf_wire_type::length_delimited)) {
        const protozero::data_view element = reader.get_view();
        const auto length = static_cast<uint32_t>(element.size());
        append(out, &length, sizeof(length));
        append(out, element.data(), element.size());
      } else {
        reader.skip();
      }
    }
  } else if (field == ContentsField::kBool) {
    for_each_varint(contents, field,
                    [&](uint64_t value) { out.push_back(static_cast<std::byte>(value != 0)); });
  } else {
    // Little-endian: the low bytes of a value come first.
    for_each_varint(contents, field, [&](uint64_t value) { append(out, &value, size); });
  }
  return {};
}

}  // namespace headrace
