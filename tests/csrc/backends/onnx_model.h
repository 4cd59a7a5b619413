// Writes small ONNX models, so that tests need no model files and no exporter.
//
//   OnnxModel model;
//   model.input("x", DType::kFp32, {-1, 4}).output("y", DType::kFp32, {-1, 4});
//   model.node("Relu", {"x"}, {"y"});
//   std::string bytes = model.serialise();
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <protozero/pbf_writer.hpp>

#include "core/dtype.h"

namespace headrace {

// onnx.proto TensorProto.DataType.
inline int32_t onnx_type(DType dtype) {
  switch (dtype) {
    case DType::kFp32:
      return 1;
    case DType::kUint8:
      return 2;
    case DType::kInt8:
      return 3;
    case DType::kUint16:
      return 4;
    case DType::kInt16:
      return 5;
    case DType::kInt32:
      return 6;
    case DType::kInt64:
      return 7;
    case DType::kBytes:
      return 8;
    case DType::kBool:
      return 9;
    case DType::kFp16:
      return 10;
    case DType::kFp64:
      return 11;
    case DType::kUint32:
      return 12;
    case DType::kUint64:
      return 13;
    case DType::kBf16:
      return 16;
    case DType::kInvalid:
      break;
  }
  return 14;  // COMPLEX64, which the protocol lacks
}

class OnnxModel {
 public:
  // dims: -1 = dynamic.
  OnnxModel& input(const std::string& name, DType dtype, const std::vector<int64_t>& dims) {
    protozero::pbf_writer{graph_}.add_message(11, value_info(name, dtype, dims));
    return *this;
  }
  OnnxModel& output(const std::string& name, DType dtype, const std::vector<int64_t>& dims) {
    protozero::pbf_writer{graph_}.add_message(12, value_info(name, dtype, dims));
    return *this;
  }
  OnnxModel& node(const std::string& op, const std::vector<std::string>& inputs,
                  const std::vector<std::string>& outputs,
                  const std::vector<std::pair<std::string, int64_t>>& attributes = {}) {
    std::string bytes;
    protozero::pbf_writer writer{bytes};
    for (const std::string& name : inputs) writer.add_string(1, name);
    for (const std::string& name : outputs) writer.add_string(2, name);
    writer.add_string(4, op);
    for (const auto& [name, value] : attributes) {
      std::string attribute;
      protozero::pbf_writer inner{attribute};
      inner.add_string(1, name);
      inner.add_int64(3, value);
      inner.add_enum(20, 2);  // INT
      writer.add_message(5, attribute);
    }
    protozero::pbf_writer{graph_}.add_message(1, bytes);
    return *this;
  }
  OnnxModel& constant(const std::string& name, const std::vector<int64_t>& dims,
                      std::span<const float> values) {
    std::string bytes;
    protozero::pbf_writer writer{bytes};
    for (const int64_t dim : dims) writer.add_int64(1, dim);
    writer.add_int32(2, onnx_type(DType::kFp32));
    writer.add_string(8, name);
    writer.add_bytes(9, reinterpret_cast<const char*>(values.data()), values.size_bytes());
    protozero::pbf_writer{graph_}.add_message(5, bytes);
    return *this;
  }

  std::string serialise() const {
    std::string bytes;
    protozero::pbf_writer writer{bytes};
    writer.add_int64(1, 8);  // IR version
    writer.add_message(7, graph_);
    std::string opset;
    protozero::pbf_writer{opset}.add_int64(2, 17);
    writer.add_message(8, opset);
    return bytes;
  }

 private:
  static std::string value_info(const std::string& name, DType dtype,
                                const std::vector<int64_t>& dims) {
    std::string shape;
    for (const int64_t dim : dims) {
      std::string bytes;
      protozero::pbf_writer writer{bytes};
      if (dim < 0) {
        writer.add_string(2, "n");
      } else {
        writer.add_int64(1, dim);
      }
      protozero::pbf_writer{shape}.add_message(1, bytes);
    }
    std::string tensor;
    protozero::pbf_writer tensor_writer{tensor};
    tensor_writer.add_int32(1, onnx_type(dtype));
    tensor_writer.add_message(2, shape);
    std::string type;
    protozero::pbf_writer{type}.add_message(1, tensor);
    std::string bytes;
    protozero::pbf_writer writer{bytes};
    writer.add_string(1, name);
    writer.add_message(2, type);
    return bytes;
  }

  std::string graph_;
};

}  // namespace headrace
