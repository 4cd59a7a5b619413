#include <doctest/doctest.h>

#include <protozero/pbf_reader.hpp>
#include <random>

#include "frontend/infer_codec.h"
#include "frontend/messages.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

constexpr std::size_t kRoom = 5;
constexpr std::size_t kByReference = 16 * 1024;  // as in the encoder: smaller ones are copied

class Ignore final : public Completion {
 public:
  void complete(RequestPtr) noexcept override {}
};

struct WireOutput {
  std::string name;
  std::string datatype;
  std::vector<int64_t> shape;
};

// ModelInferResponse, read back.
struct WireResponse {
  std::string model_name;
  std::string model_version;
  std::optional<std::string> id;
  std::vector<WireOutput> outputs;
  std::vector<std::string> raw;
};

WireResponse parse(const std::string& bytes) {
  WireResponse response;
  protozero::pbf_reader reader(bytes);
  while (reader.next()) {
    REQUIRE(reader.wire_type() == protozero::pbf_wire_type::length_delimited);
    switch (reader.tag()) {
      case 1:
        response.model_name = reader.get_string();
        break;
      case 2:
        response.model_version = reader.get_string();
        break;
      case 3:
        response.id = reader.get_string();
        break;
      case 5: {
        WireOutput& output = response.outputs.emplace_back();
        protozero::pbf_reader tensor(reader.get_view());
        while (tensor.next()) {
          if (tensor.tag() == 1)
            output.name = tensor.get_string();
          else if (tensor.tag() == 2)
            output.datatype = tensor.get_string();
          else if (tensor.tag() == 3) {
            for (const int64_t dim : tensor.get_packed_int64()) output.shape.push_back(dim);
          } else
            FAIL("unexpected field of an output");
        }
        break;
      }
      case 6:
        response.raw.push_back(reader.get_string());
        break;
      default:
        FAIL("unexpected field of the response");
    }
  }
  return response;
}

struct Encoded {
  BufferRef head;
  std::vector<BodyPiece> pieces;
  std::string bytes() const {
    std::string all = text_of_bytes(std::as_const(head).span().subspan(kRoom));
    for (const BodyPiece& piece : pieces) all += text_of_bytes(piece.bytes);
    return all;
  }
};

class Fixture {
 public:
  Fixture() : request(new Request(completion_)) {
    request->response.model_name = "model";
    request->response.model_version = "7";
  }
  void add(std::string_view name, DType dtype, Shape shape, const std::string& bytes) {
    BufferRef owner = buffer_of(bytes);
    const TensorView tensor{dtype, shape, std::as_const(owner).span()};
    request->response.outputs.push_back({name, tensor, owner});
  }
  Encoded encode() {
    Encoded encoded;
    encoded.head = encode_infer_response(*request, kRoom, scratch, encoded.pieces);
    return encoded;
  }

 private:
  Ignore completion_;

 public:
  RequestPtr request;
  std::string scratch;
};

}  // namespace

TEST_CASE("a response without outputs names its model") {
  Fixture fixture;
  const WireResponse response = parse(fixture.encode().bytes());
  CHECK(response.model_name == "model");
  CHECK(response.model_version == "7");
  CHECK_FALSE(response.id);
  CHECK(response.outputs.empty());
  CHECK(response.raw.empty());
}

TEST_CASE("the id is echoed") {
  Fixture fixture;
  fixture.request->id = "r\xc3\xa9q";
  CHECK(parse(fixture.encode().bytes()).id == "r\xc3\xa9q");
}

TEST_CASE("outputs of every datatype, of any rank, also empty") {
  Fixture fixture;
  fixture.add("scalar", DType::kFp64, {}, std::string(8, 's'));
  fixture.add("empty", DType::kFp32, {0, 3}, "");
  fixture.add("bytes", DType::kBytes, {2}, std::string("\x01\0\0\0a\0\0\0\0", 9));
  fixture.add("none", DType::kBytes, {0}, "");
  fixture.add("big", DType::kInt64, {1, 1LL << 40, 0}, "");
  fixture.add("bf16", DType::kBf16, {1}, "ab");
  const WireResponse response = parse(fixture.encode().bytes());
  REQUIRE(response.outputs.size() == 6);
  REQUIRE(response.raw.size() == 6);
  CHECK(response.outputs[0].datatype == "FP64");
  CHECK(response.outputs[0].shape.empty());
  CHECK(response.outputs[1].shape == std::vector<int64_t>{0, 3});
  CHECK(response.raw[1].empty());
  CHECK(response.outputs[2].datatype == "BYTES");
  CHECK(response.raw[2] == std::string("\x01\0\0\0a\0\0\0\0", 9));
  CHECK(response.outputs[4].shape == std::vector<int64_t>{1, 1LL << 40, 0});
  CHECK(response.outputs[5].datatype == "BF16");
}

TEST_CASE("large outputs go by reference, small ones by copy") {
  for (const std::size_t size :
       {kByReference - 1, kByReference, kByReference + 1, std::size_t{1} << 20}) {
    CAPTURE(size);
    const bool by_reference = size >= kByReference;
    Fixture fixture;
    fixture.add("Y", DType::kUint8, {static_cast<int64_t>(size)}, std::string(size, 'y'));
    const Encoded encoded = fixture.encode();
    const std::byte* data = fixture.request->response.outputs[0].tensor.data.data();
    CHECK(encoded.pieces.empty() != by_reference);
    if (by_reference) {
      CHECK(encoded.pieces[0].bytes.data() == data);
      CHECK(encoded.pieces[0].owner.data() == data);
    }
    CHECK(parse(encoded.bytes()).raw.at(0) == std::string(size, 'y'));
  }
}

TEST_CASE("the pieces outlive the request") {
  Encoded encoded;
  {
    Fixture fixture;
    fixture.add("Y", DType::kUint8, {20000}, std::string(20000, 'y'));
    encoded = fixture.encode();
  }
  CHECK(parse(encoded.bytes()).raw.at(0) == std::string(20000, 'y'));
}

TEST_CASE("property: what is encoded reads back the same, in the same order") {
  std::mt19937 random(7);
  Fixture fixture;  // one scratch for all, as on an I/O thread
  for (int round = 0; round < 300; ++round) {
    fixture.request->response.outputs.clear();
    const std::string id(random() % 3, 'i');
    fixture.request->id = id;
    std::vector<std::string> names;
    std::vector<std::string> data;
    const std::size_t count = random() % 9;
    for (std::size_t i = 0; i < count; ++i) {
      names.push_back("out" + std::to_string(i) + std::string(random() % 200, 'n'));
      constexpr std::size_t kSizes[] = {0, 1, 100, kByReference - 1, kByReference, 40000};
      data.emplace_back(kSizes[random() % 6], static_cast<char>('a' + i));
    }
    for (std::size_t i = 0; i < count; ++i) {
      fixture.add(names[i], DType::kUint8, {1, static_cast<int64_t>(data[i].size())}, data[i]);
    }
    const Encoded encoded = fixture.encode();
    CHECK(encoded.head.size() >= kRoom);
    for (const BodyPiece& piece : encoded.pieces) CHECK_FALSE(piece.bytes.empty());
    const WireResponse response = parse(encoded.bytes());
    CHECK(response.id.value_or("") == id);
    REQUIRE(response.outputs.size() == count);
    CHECK(response.raw == data);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(response.outputs[i].name == names[i]);
      CHECK(response.outputs[i].shape.at(1) == static_cast<int64_t>(data[i].size()));
    }
  }
}
