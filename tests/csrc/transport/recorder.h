// A StreamAcceptor that records what its streams are told. It answers nothing by itself.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "transport/stream.h"
#include "wire_client.h"

namespace headrace::test {

struct Recorder final : StreamHandler {
  void on_header(std::string_view name, std::string_view value) override {
    CHECK(closes == 0);
    headers.emplace_back(name, value);
  }
  void on_headers_end(bool over) override {
    ++headers_ends;
    too_large = over;
  }
  void on_data(std::span<const std::byte> bytes) override {
    CHECK(headers_ends == 1);
    CHECK(ends == 0);
    CHECK(closes == 0);
    body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void on_end() override {
    CHECK(headers_ends == 1);
    CHECK(closes == 0);
    ++ends;
  }
  void on_writable() override {
    CHECK(closes == 0);
    ++writables;
  }
  void on_closed(Http2Error why) override {
    ++closes;
    error = why;
    stream = nullptr;
  }
  std::string path() const { return Reply::find(headers, ":path").value_or(""); }

  Stream* stream = nullptr;
  std::string peer;
  Headers headers;
  std::string body;
  int headers_ends = 0;
  int ends = 0;
  int closes = 0;
  int writables = 0;
  bool too_large = false;
  Http2Error error = Http2Error::kNoError;
};

struct RecordingAcceptor final : StreamAcceptor {
  StreamHandler* open(Stream& stream) override {
    recorders.push_back(std::make_unique<Recorder>());
    recorders.back()->stream = &stream;
    recorders.back()->peer = stream.peer();
    return recorders.back().get();
  }
  Recorder& only() {
    REQUIRE(recorders.size() == 1);
    return *recorders.front();
  }
  std::vector<std::unique_ptr<Recorder>> recorders;
};

}  // namespace headrace::test
