#include "routing/router.h"

#include <charconv>
#include <chrono>

namespace headrace {
namespace {

// Loading takes seconds for the models that are too large to be there twice.
constexpr std::chrono::milliseconds kReplacingPushback{1000};

std::string unknown_model(std::string_view model) {
  return "Request for unknown model: '" + std::string(model) + "'";
}

Result<int64_t> parse_version(std::string_view text) {
  int64_t version = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
  if (error != std::errc() || end != text.data() + text.size()) {
    return Status::invalid_argument("failed to get model version from specified version string '" +
                                    std::string(text) +
                                    "' (details: stol), version should be an integral value > 0");
  }
  if (version <= 0) {
    return Status::invalid_argument("invalid model version specified '" + std::string(text) +
                                    "' , version should be an integral value > 0");
  }
  return version;
}

}  // namespace

Result<Route> RouteTable::route(const Request& request) const {
  const auto found = models_.find(request.model_name);
  if (found != models_.end()) {
    const ModelRoutes& routes = found->second;
    if (request.model_version.empty() && !routes.split.empty()) {
      const Arm& arm = routes.split.choose(request);
      return Route{arm.servable, arm.label};
    }
    if (!request.model_version.empty()) {
      const auto label = routes.labels.find(request.model_version);
      if (label != routes.labels.end() && label->second.servable != nullptr) {
        return Route{label->second.servable, label->second.label};
      }
    }
  }
  Result<std::shared_ptr<Servable>> servable = find(request.model_name, request.model_version);
  if (!servable) return servable.error();
  return Route{*std::move(servable), nullptr};
}

Result<std::shared_ptr<Servable>> RouteTable::find(std::string_view model,
                                                   std::string_view version) const {
  const auto found = models_.find(model);
  if (version.empty()) {
    if (found == models_.end()) return missing(unknown_model(model) + " is not found");
    if (found->second.default_version == nullptr) {
      if (found->second.replacing) {
        return Status::unavailable(unknown_model(model) +
                                   " is being replaced, its new version is not at ready state")
            .with_pushback(kReplacingPushback);
      }
      return missing(unknown_model(model) + " has no available versions");
    }
    return found->second.default_version;
  }
  if (found != models_.end()) {
    const auto label = found->second.labels.find(version);
    if (label != found->second.labels.end()) {
      if (label->second.servable != nullptr) return label->second.servable;
      return Status::unavailable(unknown_model(model) + " version '" + std::string(version) +
                                 "' is not at ready state");
    }
  }
  const Result<int64_t> number = parse_version(version);
  if (!number) return number.error();
  if (found == models_.end()) return missing(unknown_model(model) + " is not found");
  const auto at = found->second.versions.find(*number);
  if (at == found->second.versions.end()) {
    return missing(unknown_model(model) + " version " + std::to_string(*number) + " is not found");
  }
  if (at->second == nullptr) {
    return Status::unavailable(unknown_model(model) + " version " + std::to_string(*number) +
                               " is not at ready state");
  }
  return at->second;
}

Status RouteTable::missing(std::string text) const {
  if (starting_) return Status::unavailable(text + " yet: the server is starting");
  return Status::not_found(std::move(text));
}

}  // namespace headrace
