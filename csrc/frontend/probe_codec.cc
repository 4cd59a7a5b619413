#include "frontend/probe_codec.h"

#include <algorithm>
#include <protozero/pbf_message.hpp>
#include <protozero/pbf_writer.hpp>
#include <string>
#include <utility>
#include <vector>

#include "frontend/infer_codec.h"

namespace headrace {

Result<NameAndVersion> decode_name_and_version(std::string_view message) {
  NameAndVersion result;
  try {
    protozero::pbf_reader reader(message.data(), message.size());
    while (reader.next()) {
      const bool text = reader.wire_type() == protozero::pbf_wire_type::length_delimited;
      if (text && (reader.tag() == 1 || reader.tag() == 2)) {
        std::string_view& field = reader.tag() == 1 ? result.name : result.version;
        const protozero::data_view view = reader.get_view();
        field = {view.data(), view.size()};
        if (!valid_utf8(field)) return Status::internal("Exception deserializing request!");
      } else {
        reader.skip();
      }
    }
  } catch (const protozero::exception&) {
    return Status::internal("Exception deserializing request!");
  }
  return result;
}

BufferRef encode_number(uint32_t value) {
  std::string text(Call::kPrefixBytes, '\0');
  protozero::pbf_writer writer(text);
  if (value != 0) writer.add_uint32(1, value);
  BufferRef message = BufferRef::allocate(text.size());
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(message.data()));
  return message;
}

void respond_number(Call& call, uint32_t value) {
  std::vector<BodyPiece> rest;
  call.respond(encode_number(value), rest);
}

}  // namespace headrace
