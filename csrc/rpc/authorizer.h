// Who may call what. The one point of authorisation is Call's dispatch: a method is registered with the
// right it needs (Method::right), an AccessPolicy says which rights a caller has, and what is not allowed
// is refused before a byte of the request is looked at:
//
//   - a method registered without a right is refused to everyone: PERMISSION_DENIED;
//   - a credential that is not known, or several: UNAUTHENTICATED;
//   - no credential, and callers without one lack the right: UNAUTHENTICATED;
//   - a known caller without the right: PERMISSION_DENIED.
//
// A caller is known by an API key (`authorization: Bearer KEY` or `x-api-key: KEY`) or by the verified
// certificate of its connection (a subject alternative name, or else the common name). A key goes
// before the certificate. A member, and all anonymous callers together, may have a quota of inferences
// and calls a second: what is beyond it is answered RESOURCE_EXHAUSTED. Keys are kept as SHA-256 digests only: they must be random, not passwords.
//
// Threads: an AccessPolicy is immutable but for its quotas, which any thread takes from; the control
// plane publishes a new one, whose quotas are full.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/quota.h"
#include "base/status.h"
#include "transport/auth_context.h"
#include "transport/digest.h"

namespace headrace {

// The least that a group of methods needs; docs/RPC_RIGHTS.md lists every method's.
enum class Right : uint8_t {
  kNone,      // not decided: nobody may
  kProbe,     // liveness, readiness, health
  kMetadata,  // what is served and how it does
  kInfer,
  kControl,  // changes the server: loading, unloading, settings
  kCall,     // methods of an application's own services
};

// "probe", "metadata", ... as configurations have it; nullopt for anything else, kNone included.
std::optional<Right> right_from_name(std::string_view name);
std::string_view name_of(Right right);

class Rights {
 public:
  Rights() = default;
  Rights(std::initializer_list<Right> rights) {
    for (const Right right : rights) add(right);
  }
  void add(Right right) { bits_ |= 1U << static_cast<unsigned>(right); }
  bool has(Right right) const {
    return right != Right::kNone && (bits_ >> static_cast<unsigned>(right) & 1) != 0;
  }

 private:
  uint32_t bits_ = 0;
};

// A caller that the policy knows.
struct Principal {
  std::string name;
  Rights rights;
  std::shared_ptr<Quota> quota{};  // null: as much as it likes
};

class AccessPolicy {
 public:
  struct Member {
    Principal principal;
    std::vector<Sha256> keys;
    std::vector<std::string> identities;  // of certificates
  };

  // Open: everyone may call every method that has a right.
  AccessPolicy() = default;
  // `anonymous`: what callers without any credential may do. A key or an identity that two members have
  // belongs to the first.
  // `anonymous_quota`: what they share; null: as much as they like.
  AccessPolicy(Rights anonymous, std::vector<Member> members,
               std::shared_ptr<Quota> anonymous_quota = nullptr);

  bool open() const { return open_; }

  // What a call brought. Views; `credential` is the key, without "Bearer ".
  struct Caller {
    std::optional<std::string_view> credential;
    bool ambiguous = false;  // several credentials, or one of a form that we do not know
    const AuthContext* connection = nullptr;
  };
  // OK and who it is (null: no credential), or why not.
  struct Decision {
    Status status;
    std::shared_ptr<const Principal> principal;
  };
  Decision decide(Right needed, const Caller& caller) const;

  // Takes one from the quota of the caller, null for an anonymous one. Not OK: it is used up.
  Status take_quota(const Principal* principal, TimePoint now) const;

 private:
  struct Key {
    Sha256 digest;
    std::shared_ptr<const Principal> principal;
  };
  std::shared_ptr<const Principal> find_key(std::string_view credential) const;
  std::shared_ptr<const Principal> find_identity(const AuthContext& connection) const;

  bool open_ = true;
  Rights anonymous_;
  std::shared_ptr<Quota> anonymous_quota_;
  // By the digest's first bytes: how long a lookup takes tells no more than a part of a digest.
  std::unordered_multimap<uint64_t, Key> keys_;
  std::map<std::string, std::shared_ptr<const Principal>, std::less<>> identities_;
};

// Takes a request header that may carry a credential into `caller`; false: it is none of those.
// `caller.credential` then points into `value`.
bool take_credential(std::string_view name, std::string_view value, AccessPolicy::Caller& caller);

}  // namespace headrace
