#include "rpc/authorizer.h"

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "base/snapshot.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;

namespace {

AccessPolicy policy(Rights anonymous = {Right::kProbe}) {
  std::vector<AccessPolicy::Member> members(3);
  members[0] = {{"reader", {Right::kProbe, Right::kMetadata}}, {sha256("key-r")}, {}};
  members[1] = {{"caller", {Right::kInfer}}, {sha256("key-c1"), sha256("key-c2")}, {"spiffe://c"}};
  members[2] = {{"operator", {Right::kControl}}, {}, {"ops.example"}};
  return {anonymous, std::move(members)};
}

StatusCode decided(const AccessPolicy& by, Right needed,
                   std::optional<std::string_view> key = std::nullopt,
                   const AuthContext* connection = nullptr) {
  return by.decide(needed, {key, false, connection}).status.code();
}

AuthContext certificate(std::vector<std::string> names) {
  AuthContext context;
  for (std::string& name : names) {
    context.properties.emplace_back("x509_subject_alternative_name", std::move(name));
  }
  context.identity_key = "x509_subject_alternative_name";
  return context;
}

constexpr StatusCode kOk = StatusCode::kOk;
constexpr StatusCode kDenied = StatusCode::kPermissionDenied;
constexpr StatusCode kUnknown = StatusCode::kUnauthenticated;

}  // namespace

TEST_CASE("the names of rights") {
  for (const Right right :
       {Right::kProbe, Right::kMetadata, Right::kInfer, Right::kControl, Right::kCall}) {
    CHECK(right_from_name(name_of(right)) == right);
  }
  for (const char* name : {"none", "", "Infer", "all"}) CHECK_FALSE(right_from_name(name));
  CHECK_FALSE(Rights{Right::kNone}.has(Right::kNone));
}

TEST_CASE("SHA-256 of its standard's example") {
  const Sha256 digest = sha256("abc");
  CHECK(digest[0] == std::byte{0xba});
  CHECK(digest[31] == std::byte{0xad});
  CHECK(equal_in_constant_time(digest, sha256("abc")));
  CHECK_FALSE(equal_in_constant_time(digest, sha256("abd")));
}

TEST_CASE("an open policy allows all but what has no right") {
  const AccessPolicy open;
  CHECK(open.open());
  CHECK(decided(open, Right::kControl) == kOk);
  CHECK(decided(open, Right::kControl, "whatever") == kOk);
  CHECK(decided(open, Right::kNone) == kDenied);
}

TEST_CASE("keys") {
  const AccessPolicy closed = policy();
  CHECK(decided(closed, Right::kMetadata, "key-r") == kOk);
  CHECK(decided(closed, Right::kInfer, "key-r") == kDenied);
  CHECK(decided(closed, Right::kInfer, "key-c1") == kOk);
  CHECK(decided(closed, Right::kInfer, "key-c2") == kOk);
  CHECK(decided(closed, Right::kProbe, "key-c2") == kDenied);  // rights do not add up
  for (const char* wrong : {"", "key", "key-r ", "KEY-R", "key-rx"}) {
    CHECK(decided(closed, Right::kMetadata, wrong) == kUnknown);
    CHECK(decided(closed, Right::kProbe, wrong) == kUnknown);  // a wrong key is never anonymous
  }
  CHECK(decided(closed, Right::kNone, "key-r") == kDenied);
  CHECK(closed.decide(Right::kInfer, {"key-c2", false, nullptr}).principal->name == "caller");
}

TEST_CASE("without a credential") {
  CHECK(decided(policy(), Right::kProbe) == kOk);
  CHECK(decided(policy(), Right::kInfer) == kUnknown);
  CHECK(decided(policy({}), Right::kProbe) == kUnknown);
  CHECK(policy().decide(Right::kProbe, {}).principal == nullptr);
}

TEST_CASE("certificates") {
  const AccessPolicy closed = policy();
  const AuthContext known = certificate({"other", "spiffe://c"});
  const AuthContext stranger = certificate({"spiffe://c.evil", "spiffe"});
  const AuthContext none;  // TLS, and the client showed no certificate
  CHECK(decided(closed, Right::kInfer, std::nullopt, &known) == kOk);
  CHECK(decided(closed, Right::kControl, std::nullopt, &known) == kDenied);
  CHECK(decided(closed, Right::kInfer, std::nullopt, &stranger) == kDenied);
  CHECK(decided(closed, Right::kProbe, std::nullopt, &stranger) == kOk);
  CHECK(decided(closed, Right::kInfer, std::nullopt, &none) == kUnknown);
  // The key says who it is, not the connection.
  CHECK(decided(closed, Right::kMetadata, "key-r", &known) == kOk);
  CHECK(decided(closed, Right::kInfer, "key-r", &known) == kDenied);
  CHECK(decided(closed, Right::kInfer, "wrong", &known) == kUnknown);
}

TEST_CASE("what headers say") {
  const auto taken = [](std::vector<std::pair<std::string, std::string>> headers) {
    AccessPolicy::Caller caller;
    for (const auto& [name, value] : headers) take_credential(name, value, caller);
    if (caller.ambiguous) return std::string("ambiguous");
    return std::string(caller.credential.value_or("none"));
  };
  CHECK(taken({{"x-api-key", "k"}}) == "k");
  CHECK(taken({{"authorization", "Bearer k"}}) == "k");
  CHECK(taken({{"authorization", "bEARER   k"}}) == "k");
  CHECK(taken({{"x-other", "k"}}) == "none");
  CHECK(taken({}) == "none");
  CHECK(taken({{"authorization", "Basic a2V5"}}) == "ambiguous");
  CHECK(taken({{"authorization", "Bearer"}}) == "ambiguous");
  CHECK(taken({{"authorization", ""}}) == "ambiguous");
  CHECK(taken({{"x-api-key", ""}}) == "ambiguous");
  CHECK(taken({{"x-api-key", "k"}, {"x-api-key", "k"}}) == "ambiguous");
  CHECK(taken({{"x-api-key", "k"}, {"authorization", "Bearer k"}}) == "ambiguous");
}

TEST_CASE("calls are refused before their message, and know their caller") {
  struct Asking final : Handler {
    std::vector<std::string> callers;
    void on_unary(Call& call, BufferRef) override {
      callers.push_back(call.principal() ? call.principal()->name : "");
      call.fail(Status::not_found("reached"));
    }
    void on_cancel(Call&) override {}
  } handler;
  WireServer server;
  Snapshot<AccessPolicy> access;
  server.calls.set_access(access);
  server.methods.add("/t/Infer", {.handler = &handler, .right = Right::kInfer});
  server.methods.add("/t/Undecided", {.handler = &handler});
  Wire wire(server.calls);
  const auto status = [&](const std::string& path, const Headers& headers = {}) {
    const int32_t id = wire.client.open(path, headers);  // its message never comes
    wire.pump();
    if (wire.client.reply(id).status() < 0) {
      wire.client.send(id, grpc_message(""));
      wire.client.end(id);
      wire.pump();
      CHECK(wire.client.reply(id).status() == 5);
      return 0;
    }
    return wire.client.reply(id).status();
  };
  const Headers key = {{"authorization", "Bearer key-c1"}};
  SUBCASE("open") {
    CHECK(status("/t/Infer") == 0);
    CHECK(status("/t/Infer", key) == 0);
    CHECK(status("/t/Undecided") == 7);
    CHECK(status("/t/None") == 12);
    CHECK(handler.callers == std::vector<std::string>{"", ""});
  }
  SUBCASE("with quotas") {
    std::vector<AccessPolicy::Member> members(2);
    members[0] = {{"caller", {Right::kInfer, Right::kProbe}, std::make_shared<Quota>(0.1, 2)},
                  {sha256("key-c1")},
                  {}};
    members[1] = {{"other", {Right::kInfer}}, {sha256("key-c2")}, {}};
    access.publish(std::make_shared<const AccessPolicy>(Rights{Right::kInfer}, std::move(members),
                                                        std::make_shared<Quota>(0.1, 1)));
    server.methods.add("/t/Probe", {.handler = &handler, .right = Right::kProbe});
    CHECK(status("/t/Infer", key) == 0);
    CHECK(status("/t/Infer", key) == 0);
    const int32_t refused = wire.client.open("/t/Infer", key);
    wire.pump();
    CHECK(wire.client.reply(refused).status() == 8);
    CHECK(wire.client.reply(refused).status_message() == "the quota of 'caller' is used up");
    const auto pushback = wire.client.reply(refused).header("grpc-retry-pushback-ms");
    REQUIRE(pushback);
    CHECK(std::stoi(*pushback) > 9000);
    CHECK(std::stoi(*pushback) <= 10000);
    CHECK(status("/t/Probe", key) == 0);  // probes are free
    CHECK(status("/t/Infer", {{"x-api-key", "key-c2"}}) == 0);
    CHECK(status("/t/Infer") == 0);
    CHECK(status("/t/Infer") == 8);
    CHECK(server.calls.counters().quota_refused == 2);
  }
  SUBCASE("closed, and opened again") {
    access.publish(std::make_shared<const AccessPolicy>(policy()));
    CHECK(status("/t/Infer") == 16);
    CHECK(status("/t/Infer", {{"x-api-key", "key-r"}}) == 7);
    CHECK(status("/t/Infer", {{"x-api-key", "key-x"}}) == 16);
    CHECK(status("/t/Infer", {{"x-api-key", "key-c2"}}) == 0);
    CHECK(status("/t/Infer", key) == 0);
    CHECK(status("/t/Undecided", key) == 7);
    access.publish(std::make_shared<const AccessPolicy>());
    CHECK(status("/t/Infer") == 0);
    CHECK(handler.callers == std::vector<std::string>{"caller", "caller", ""});
  }
  CHECK(server.idle());
}
