// What an OpenVINO exception says, as a Status that helps.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace headrace {

// OpenVINO's exception texts are a page of source locations around one line that matters. Keeps
// that: one line, a few hundred characters at most.
std::string shorten_openvino_text(std::string_view text);

// For use inside a catch block: `code` and "<prefix>: <what the runtime says>". bad_alloc becomes
// RESOURCE_EXHAUSTED whatever `code` is.
Status caught_openvino_status(StatusCode code, const std::string& prefix);

}  // namespace headrace
