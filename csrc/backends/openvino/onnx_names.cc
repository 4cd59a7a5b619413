#include "backends/openvino/onnx_names.h"

#include <algorithm>
#include <cstdint>
#include <fstream>

namespace headrace {
namespace {

// Field numbers of onnx.proto.
constexpr uint32_t kModelGraph = 7;
constexpr uint32_t kGraphInitializer = 5;
constexpr uint32_t kGraphInput = 11;
constexpr uint32_t kGraphOutput = 12;
constexpr uint32_t kTensorName = 8;
constexpr uint32_t kValueInfoName = 1;

constexpr uint64_t kLongestName = 64 * 1024;

// Walks protobuf fields of a file without loading it: weights are seeked over. protozero wants the
// whole message in memory, which for a model may be gigabytes.
class FieldWalker {
 public:
  explicit FieldWalker(const std::string& path) : file_(path, std::ios::binary | std::ios::ate) {
    if (file_) size_ = static_cast<uint64_t>(file_.tellg());
    file_.seekg(0);
  }

  bool ok() const { return ok_ && file_.good(); }
  uint64_t size() const { return size_; }
  uint64_t position() const { return position_; }

  // The next field before `end`. True: `field` is set, and `length` when it is length-delimited (0
  // otherwise, its value skipped). False at `end` or when the file is broken: see ok().
  bool next(uint64_t end, uint32_t& field, uint64_t& length) {
    if (!ok() || position_ >= end) return false;
    const uint64_t tag = varint();
    field = static_cast<uint32_t>(tag >> 3);
    length = 0;
    switch (tag & 7) {
      case 0:
        varint();
        break;
      case 1:
        skip(8, end);
        break;
      case 2:
        length = varint();
        if (position_ > end || length > end - position_) ok_ = false;
        break;
      case 5:
        skip(4, end);
        break;
      default:
        ok_ = false;
    }
    return ok() && position_ <= end;
  }

  void skip(uint64_t length, uint64_t end) {
    if (position_ > end || length > end - position_) {
      ok_ = false;
      return;
    }
    position_ += length;
    // A seek drops the stream's buffer, so short fields are read over.
    if (length < 4096) {
      file_.ignore(static_cast<std::streamsize>(length));
    } else {
      file_.seekg(static_cast<std::streamoff>(position_));
    }
  }

  std::string text(uint64_t length) {
    if (length > kLongestName) {
      ok_ = false;
      return {};
    }
    std::string value(length, '\0');
    file_.read(value.data(), static_cast<std::streamsize>(length));
    position_ += length;
    return value;
  }

  // The string field `wanted` of the message of `length` bytes that starts here; walks over all of
  // it.
  std::string name_in(uint64_t length, uint32_t wanted) {
    const uint64_t end = position_ + length;
    std::string name;
    uint32_t field = 0;
    uint64_t size = 0;
    while (next(end, field, size)) {
      if (field == wanted) {
        name = text(size);
      } else {
        skip(size, end);
      }
    }
    return name;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const int byte = file_.get();
      if (byte < 0) break;
      ++position_;
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    ok_ = false;
    return 0;
  }

  std::ifstream file_;
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  bool ok_ = true;
};

}  // namespace

std::optional<OnnxNames> read_onnx_names(const std::string& path) {
  FieldWalker walker(path);
  OnnxNames names;
  std::vector<std::string> initializers;
  uint32_t field = 0;
  uint64_t length = 0;
  while (walker.next(walker.size(), field, length)) {
    if (field != kModelGraph) {
      walker.skip(length, walker.size());
      continue;
    }
    const uint64_t end = walker.position() + length;
    while (walker.next(end, field, length)) {
      switch (field) {
        case kGraphInput:
          names.inputs.push_back(walker.name_in(length, kValueInfoName));
          break;
        case kGraphOutput:
          names.outputs.push_back(walker.name_in(length, kValueInfoName));
          break;
        case kGraphInitializer:
          initializers.push_back(walker.name_in(length, kTensorName));
          break;
        default:
          walker.skip(length, end);
      }
    }
  }
  if (!walker.ok() || names.outputs.empty()) return std::nullopt;
  // Before IR version 4 every initializer had to be listed as an input too.
  std::sort(initializers.begin(), initializers.end());
  std::erase_if(names.inputs, [&](const std::string& name) {
    return std::binary_search(initializers.begin(), initializers.end(), name);
  });
  return names;
}

}  // namespace headrace
