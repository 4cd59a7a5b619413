#include "backends/openvino/openvino_error.h"

#include <exception>
#include <new>

namespace headrace {
namespace {

constexpr std::size_t kLongestText = 400;

bool starts_with_any(std::string_view line, std::initializer_list<std::string_view> prefixes) {
  for (const std::string_view prefix : prefixes) {
    if (line.starts_with(prefix)) return true;
  }
  return false;
}

// Lines that only say where in OpenVINO's sources something was noticed.
bool is_noise(std::string_view line) {
  if (line.starts_with("Check '") && line.ends_with(":") &&
      line.find("' failed at ") != std::string_view::npos) {
    return true;
  }
  return starts_with_any(line,
                         {"Exception from ", "FrontEnd API failed with", "Loading input model",
                          "Model wasn't fully converted", "Summary:", "[ GENERAL_ERROR ]"});
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t' || text.front() == '-')) {
    text.remove_prefix(1);
  }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\r' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  return text;
}

}  // namespace

std::string shorten_openvino_text(std::string_view text) {
  std::string kept;
  std::string_view rest = text;
  while (!rest.empty() && kept.size() < kLongestText) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = trim(rest.substr(0, end));
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    if (line.empty() || is_noise(line)) continue;
    if (!kept.empty()) kept += kept.back() == ':' ? " " : "; ";
    kept += line;
  }
  if (kept.empty()) {
    const std::string_view first = trim(text.substr(0, text.find('\n')));
    kept = first.empty() ? "the runtime gave no reason" : std::string(first);
  }
  if (kept.size() > kLongestText) {
    kept.resize(kLongestText);
    // Not in the middle of a UTF-8 sequence: the text travels as a gRPC message.
    while (!kept.empty() && (static_cast<unsigned char>(kept.back()) & 0xc0) == 0x80)
      kept.pop_back();
    if (!kept.empty() && static_cast<unsigned char>(kept.back()) >= 0xc0) kept.pop_back();
    kept += "...";
  }
  return kept;
}

Status caught_openvino_status(StatusCode code, const std::string& prefix) {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted(prefix + ": out of memory");
  } catch (const std::exception& error) {
    return {code, prefix + ": " + shorten_openvino_text(error.what())};
  } catch (...) {
    return {code, prefix + ": the runtime threw something that is no std::exception"};
  }
}

}  // namespace headrace
