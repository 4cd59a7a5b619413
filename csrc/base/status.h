// Status and Result<T>: how every room reports failure. Codes are gRPC's seventeen, so a Status
// reaches the client unchanged.
//
// Threads: values; any thread.
//
//   return Status::resource_exhausted("overloaded").with_pushback(Milliseconds(20));
//   Result<Shape> parse(std::string_view text);
//   Result<Shape> shape = parse("[1,16]");
//   if (!shape) return shape.error();
#pragma once

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace headrace {

// Numbers are gRPC's (grpc/grpc doc/statuscodes.md).
enum class StatusCode : uint8_t {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok_status() { return {}; }
  static Status invalid_argument(std::string m) {
    return {StatusCode::kInvalidArgument, std::move(m)};
  }
  static Status not_found(std::string m) { return {StatusCode::kNotFound, std::move(m)}; }
  static Status internal(std::string m) { return {StatusCode::kInternal, std::move(m)}; }
  static Status unavailable(std::string m) { return {StatusCode::kUnavailable, std::move(m)}; }
  static Status unimplemented(std::string m) { return {StatusCode::kUnimplemented, std::move(m)}; }
  static Status resource_exhausted(std::string m) {
    return {StatusCode::kResourceExhausted, std::move(m)};
  }
  static Status deadline_exceeded(std::string m) {
    return {StatusCode::kDeadlineExceeded, std::move(m)};
  }
  static Status cancelled(std::string m) { return {StatusCode::kCancelled, std::move(m)}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  explicit operator bool() const { return ok(); }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // When trying again may succeed: the trailer `grpc-retry-pushback-ms`, which gRPC clients keep to.
  Status with_pushback(std::chrono::milliseconds after) && {
    pushback_ms_ = static_cast<int32_t>(std::clamp<int64_t>(after.count(), 0, INT32_MAX));
    return std::move(*this);
  }
  std::optional<std::chrono::milliseconds> pushback() const {
    if (pushback_ms_ < 0) return std::nullopt;
    return std::chrono::milliseconds(pushback_ms_);
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  int32_t pushback_ms_ = -1;  // none; lies in the padding before message_
  std::string message_;
};

// A value or the Status that says why there is none; std::expected's names, for C++20.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(*-explicit-*)
  Result(Status status)
      : state_(std::in_place_index<1>, std::move(status)) {  // NOLINT(*-explicit-*)
    assert(!std::get<1>(state_).ok() && "an OK Status carries no value");
  }

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Status& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace headrace
