// ModelInferRequest written by hand, field by field, so that tests choose the wire form.
#pragma once

#include <cstring>
#include <functional>
#include <initializer_list>
#include <protozero/pbf_writer.hpp>
#include <string>
#include <string_view>

#include "core/request.h"

namespace headrace::testing {

inline std::string text_of_bytes(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline BufferRef buffer_of(std::string_view bytes) {
  BufferRef buffer = BufferRef::allocate(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

template <class T>
std::string raw(std::initializer_list<T> values) {
  std::string bytes;
  for (const T value : values) bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  return bytes;
}

// A message built by `fill`.
inline std::string message(const std::function<void(protozero::pbf_writer&)>& fill) {
  std::string bytes;
  protozero::pbf_writer writer(bytes);
  fill(writer);
  return bytes;
}

// The bytes of a field whose value is itself `bytes`: a string, a message, a packed run.
inline std::string field(uint32_t number, std::string_view bytes) {
  return message([&](auto& w) { w.add_bytes(number, bytes.data(), bytes.size()); });
}

inline std::string tensor(std::string_view name, std::string_view dtype,
                          std::initializer_list<int64_t> shape, std::string_view rest = "") {
  return message([&](auto& w) {
           w.add_bytes(1, name.data(), name.size());
           w.add_bytes(2, dtype.data(), dtype.size());
           w.add_packed_int64(3, shape.begin(), shape.end());
         }) +
         std::string(rest);
}

inline std::string input(std::string_view name, std::string_view dtype,
                         std::initializer_list<int64_t> shape, std::string_view rest = "") {
  return field(5, tensor(name, dtype, shape, rest));
}

// A typed input: `contents` are the bytes of InferTensorContents.
inline std::string typed(std::string_view name, std::string_view dtype,
                         std::initializer_list<int64_t> shape, std::string_view contents) {
  return input(name, dtype, shape, field(5, contents));
}

inline std::string raw_contents(std::string_view bytes) { return field(7, bytes); }

// Entry of a `parameters` map; `value` is the bytes of InferParameter.
inline std::string entry(std::string_view key, std::string_view value) {
  return field(1, key) + field(2, value);
}
inline std::string bool_value(bool v) {
  return message([&](auto& w) { w.add_bool(1, v); });
}
inline std::string int64_value(int64_t v) {
  return message([&](auto& w) { w.add_int64(2, v); });
}
inline std::string string_value(std::string_view v) { return field(3, v); }
inline std::string double_value(double v) {
  return message([&](auto& w) { w.add_double(4, v); });
}
inline std::string uint64_value(uint64_t v) {
  return message([&](auto& w) { w.add_uint64(5, v); });
}

inline std::string parameter(std::string_view key, std::string_view value) {
  return field(4, entry(key, value));
}

}  // namespace headrace::testing
