#include "frontend/speech_table.h"

#include <algorithm>
#include <cctype>

namespace headrace {
namespace {

char lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

bool same(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return lower(x) == lower(y); });
}

// "en" of "en-US".
std::string_view primary(std::string_view code) { return code.substr(0, code.find('-')); }

// How well a model's language fits: 0 is not at all.
int fit(std::string_view model, std::string_view wanted) {
  if (wanted.empty() || same(model, wanted)) return 3;
  if (same(primary(model), primary(wanted))) return 2;
  return model.empty() || same(model, "multi") ? 1 : 0;
}

bool does(const SpeechModelInfo& info, bool offline) {
  return offline ? info.offline : info.streaming;
}

}  // namespace

std::string SpeechTable::names() const {
  std::string names;
  for (const auto& [name, recognizer] : models) {
    names.append(names.empty() ? "" : ", ").append(name);
  }
  return names;
}

Result<std::shared_ptr<SpeechRecognizer>> SpeechTable::choose(std::string_view model,
                                                              std::string_view language_code,
                                                              bool offline) const {
  if (models.empty()) return Status::not_found("this server has no speech model");
  if (!model.empty()) {
    const auto found = models.find(model);
    if (found == models.end()) {
      return Status::not_found("speech model '" + std::string(model) +
                               "' is not found; there are: " + names());
    }
    if (does(found->second->info(), offline)) return found->second;
    return Status::unimplemented("speech model '" + std::string(model) +
                                 (offline ? "' takes streams only: use StreamingRecognize"
                                          : "' takes whole files only: use Recognize"));
  }
  std::shared_ptr<SpeechRecognizer> best;
  int best_fit = 0;
  for (const auto& [name, recognizer] : models) {
    const SpeechModelInfo& info = recognizer->info();
    const int fits = does(info, offline) ? fit(info.language_code, language_code) : 0;
    if (fits > best_fit) {
      best = recognizer;
      best_fit = fits;
    }
  }
  if (best != nullptr) return best;
  std::string there;
  for (const auto& [name, recognizer] : models) {
    const SpeechModelInfo& info = recognizer->info();
    there.append(there.empty() ? "" : ", ").append(name).append(" (").append(info.language_code);
    if (!info.offline) there.append(", streams only");
    if (!info.streaming) there.append(", files only");
    there.append(")");
  }
  return Status::not_found("no speech model for language '" + std::string(language_code) +
                           (offline ? "' takes files" : "' takes streams") +
                           "; there are: " + there);
}

}  // namespace headrace
