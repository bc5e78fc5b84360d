// AutoRound: no tensors of its own. quant_method "auto-round", and packing_format says whose the
// layout is: "auto_round:auto_gptq" (also when there is none) -> GPTQ version 1, "auto_round" ->
// version 2 without g_idx, "...gptqmodel" -> version 2, "...awq" -> AWQ. extra_config maps layers,
// by name or pattern, to overrides.

#include "checkpoint/format.hpp"
#include "checkpoint/pattern.hpp"
#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

std::string routed_format(const SettingsObject& object) {
  const std::string packing = object.text({"packing_format"}).value_or("auto");
  const auto names = [&](std::string_view part) { return packing.find(part) != std::string::npos; };
  if (names("awq")) return "awq";
  if (names("gptqmodel") || packing == "auto_round") return "gptq_v2";
  if (names("gptq") || packing == "auto") return "gptq";
  fail(ErrorCode::unsupported, "{}: packing_format {} is not supported", object.where(),
       in_quotes(packing));
}

std::optional<SettingsObject> extra_entry(const SettingsObject& extra, std::string_view layer) {
  if (auto entry = extra.object_if(std::string(layer))) return entry;
  for (const auto& [key, entry] : extra.members()) {
    // A name that is not understood as a pattern is just another layer's name.
    if (entry && matches_beginning(layer, key + "$").value_or(false)) return entry;
  }
  return std::nullopt;
}

}  // namespace

void read_auto_round_settings(const SettingsObject& object, std::string_view layer,
                              LayerSettings& settings) {
  const auto method = object.text({"quant_method"});
  if (!method || method->find("auto-round") == std::string::npos) return;
  if (!settings.format) settings.format = routed_format(object);
  const auto extra = object.object_if("extra_config");
  if (!extra || layer.empty()) return;
  if (const auto entry = extra_entry(*extra, layer)) settings.fill(*entry);
}

}  // namespace mpq::detail
