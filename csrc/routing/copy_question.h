// What the client asked, for a request of our own that asks the same on its behalf.
#pragma once

#include "core/request.h"

namespace headrace {

// Views stay views: `to` shares the message they point into. Not the deadline and the stamps, which
// are the attempt's own.
inline void copy_question(const Request& from, Request& to) {
  to.message = from.message;
  to.converted = from.converted;
  to.model_name = from.model_name;
  to.model_version = from.model_version;
  to.id = from.id;
  to.inputs = from.inputs;
  to.outputs = from.outputs;
  to.parameters = from.parameters;
  to.priority = from.priority;
  to.timeout = from.timeout;
  to.arm = from.arm;
}

}  // namespace headrace
