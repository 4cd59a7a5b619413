#include "rpc/authorizer.h"

#include <array>
#include <cstring>
#include <utility>

namespace headrace {
namespace {

constexpr std::array<std::string_view, 6> kNames = {"none",  "probe",   "metadata",
                                                    "infer", "control", "call"};

uint64_t bucket_of(const Sha256& digest) {
  uint64_t first = 0;
  std::memcpy(&first, digest.data(), sizeof(first));
  return first;
}

// "Bearer " in any case (RFC 9110 11.1).
bool bearer(std::string_view value) {
  constexpr std::string_view kScheme = "bearer ";
  if (value.size() < kScheme.size()) return false;
  for (std::size_t i = 0; i < kScheme.size(); ++i) {
    const char c = value[i];
    if ((c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c) != kScheme[i]) return false;
  }
  return true;
}

}  // namespace

std::optional<Right> right_from_name(std::string_view name) {
  for (std::size_t i = 1; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Right>(i);
  }
  return std::nullopt;
}

std::string_view name_of(Right right) { return kNames[static_cast<std::size_t>(right)]; }

AccessPolicy::AccessPolicy(Rights anonymous, std::vector<Member> members,
                           std::shared_ptr<Quota> anonymous_quota)
    : open_(false), anonymous_(anonymous), anonymous_quota_(std::move(anonymous_quota)) {
  for (Member& member : members) {
    const auto principal = std::make_shared<const Principal>(std::move(member.principal));
    for (const Sha256& digest : member.keys) {
      keys_.emplace(bucket_of(digest), Key{digest, principal});
    }
    for (std::string& identity : member.identities) {
      identities_.emplace(std::move(identity), principal);
    }
  }
}

std::shared_ptr<const Principal> AccessPolicy::find_key(std::string_view credential) const {
  const Sha256 digest = sha256(credential);
  const auto [begin, end] = keys_.equal_range(bucket_of(digest));
  for (auto it = begin; it != end; ++it) {
    if (equal_in_constant_time(it->second.digest, digest)) return it->second.principal;
  }
  return nullptr;
}

std::shared_ptr<const Principal> AccessPolicy::find_identity(const AuthContext& connection) const {
  for (const std::string_view identity : connection.peer_identity()) {
    const auto found = identities_.find(identity);
    if (found != identities_.end()) return found->second;
  }
  return nullptr;
}

AccessPolicy::Decision AccessPolicy::decide(Right needed, const Caller& caller) const {
  if (needed == Right::kNone) {
    return {{StatusCode::kPermissionDenied, "nobody may call this method"}, nullptr};
  }
  if (open_) return {};
  if (caller.ambiguous) {
    return {{StatusCode::kUnauthenticated,
             "send one credential, as 'authorization: Bearer KEY' or 'x-api-key: KEY'"},
            nullptr};
  }
  const bool certificate = caller.connection != nullptr && caller.connection->authenticated();
  std::shared_ptr<const Principal> principal;
  if (caller.credential) {
    principal = find_key(*caller.credential);
    if (!principal) return {{StatusCode::kUnauthenticated, "unknown API key"}, nullptr};
  } else if (certificate) {
    principal = find_identity(*caller.connection);
  }
  if ((principal ? principal->rights : anonymous_).has(needed)) return {{}, std::move(principal)};
  const std::string right(name_of(needed));
  if (!principal && !certificate) {
    return {{StatusCode::kUnauthenticated,
             "this method needs the right '" + right + "' and the call came without a credential"},
            nullptr};
  }
  return {{StatusCode::kPermissionDenied,
           "the caller lacks the right '" + right + "', which this method needs"},
          std::move(principal)};
}

Status AccessPolicy::take_quota(const Principal* principal, TimePoint now) const {
  Quota* const quota = (principal != nullptr ? principal->quota : anonymous_quota_).get();
  if (quota == nullptr) return {};
  const std::optional<Nanoseconds> wait = quota->take(now);
  if (!wait) return {};
  std::string text = "the quota of ";
  text += principal == nullptr ? "anonymous callers" : "'" + principal->name + "'";
  text += " is used up";
  return Status::resource_exhausted(std::move(text))
      .with_pushback(std::chrono::ceil<Milliseconds>(*wait));
}

bool take_credential(std::string_view name, std::string_view value, AccessPolicy::Caller& caller) {
  std::string_view key;
  if (name == "x-api-key") {
    key = value;
  } else if (name == "authorization") {
    if (bearer(value)) key = value.substr(7);
    while (key.starts_with(' ')) key.remove_prefix(1);
  } else {
    return false;
  }
  if (caller.credential || key.empty()) caller.ambiguous = true;
  caller.credential = key;
  return true;
}

}  // namespace headrace
