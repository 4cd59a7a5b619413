// Compresses for tests: what a client that uses grpc-encoding sends.
#pragma once

#include <zlib.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "rpc/compression.h"

namespace headrace::test {

inline std::string compress_text(Encoding encoding, std::string_view text) {
  z_stream stream{};
  const int window = encoding == Encoding::kGzip ? MAX_WBITS + 16 : MAX_WBITS;
  if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    std::abort();
  }
  std::string out(deflateBound(&stream, text.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  if (deflate(&stream, Z_FINISH) != Z_STREAM_END) std::abort();
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace headrace::test
