// The right that each RPC of the services we define or answer needs (docs/RPC_RIGHTS.md is this table).
// An application's own methods say theirs when they are added.
#pragma once

#include <span>
#include <string_view>

#include "rpc/authorizer.h"

namespace headrace {

struct RpcRight {
  std::string_view path;
  Right right = Right::kNone;
};

std::span<const RpcRight> rpc_rights();
// kNone: not one of ours.
Right right_of_rpc(std::string_view path);

}  // namespace headrace
