#include "options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <regex>

#include "mpq/plan.hpp"

namespace mpq::bench {
namespace {

const std::map<std::string, Zeros> kZeroNames = [] {
  std::map<std::string, Zeros> names;
  for (const NamedZeros& named : kZeros) names.emplace(named.name, named.zeros);
  return names;
}();
const std::map<std::string, DType> kDTypeNames{{"f16", DType::f16}, {"bf16", DType::bf16}};
const std::map<std::string, Mode> kModeNames{{"isolated", Mode::isolated},
                                             {"chained", Mode::chained}};

const std::regex kShapePattern("([1-9][0-9]{0,8})x([1-9][0-9]{0,8})");

// CLI11 has checked the text.
Shape parse_shape(const std::string& text) {
  std::smatch match;
  std::regex_match(text, match, kShapePattern);
  return {std::stoll(match[1]), std::stoll(match[2])};
}

// Names that CLI11 has checked, in the order given.
template <class T>
std::vector<T> values_of(const std::vector<std::string>& names,
                         const std::map<std::string, T>& values) {
  std::vector<T> result;
  for (const std::string& name : names) result.push_back(values.at(name));
  return result;
}

template <class T>
std::vector<std::string> keys_of(const std::map<std::string, T>& values) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : values) keys.push_back(key);
  return keys;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const Model& model : kModels) names.emplace_back(model.name);
  return names;
}

}  // namespace

std::string to_string(const Case& c) {
  const LayerSpec& l = c.layer;
  return fmt::format("w{} {} {} g{} {}x{} M={} {}", l.bits, mpq::to_string(l.dtype),
                     to_string(l.zeros), l.group_size, l.shape.n, l.shape.k, c.m,
                     to_string(c.mode));
}

ParsedOptions parse_options(int argc, char** argv) {
  ParsedOptions parsed;
  Options& o = parsed.options;
  CLI::App app(
      "Times mpq::Linear on a CUDA device against the read ceiling, the matrix rate and cuBLAS, "
      "all\n"
      "measured in the same run. Results are verified before they are timed.\n"
      "Exit code: 0; 1 if a result was wrong or something failed; 77 with no CUDA device.",
      "mpq_bench");
  std::vector<std::string> shapes{"6144x4096",  "4096x4096", "28672x4096", "4096x14336",
                                  "10240x8192", "8192x8192", "57344x8192", "8192x28672"};
  std::vector<std::string> zeros{"int"}, dtypes{"f16"}, modes{"isolated"};
  std::string model;
  bool quick = false;
  double min_megabytes = 400;
  o.batches = {1, 2, 4, 8, 16, 32, 64};
  o.bits = {8, 4, 2, 1};
  o.groups = {128};

  const CLI::Validator is_shape(
      [](const std::string& text) {
        return std::regex_match(text, kShapePattern)
                   ? std::string()
                   : fmt::format("{} is not NxK, out_features x in_features", text);
      },
      "NxK");
  auto* shapes_option =
      app.add_option("--shapes", shapes,
                     "out_features x in_features, a list (those of llama-3-8b and -70b)")
          ->delimiter(',')
          ->check(is_shape);
  app.add_option("--model", model, "the linears of one decoder layer, q/k/v and gate/up fused")
      ->check(CLI::IsMember(model_names()))
      ->excludes(shapes_option);
  auto* batch_option = app.add_option("--batch", o.batches, "rows of x, a list (1,2,4,8,16,32,64)")
                           ->delimiter(',')
                           ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  auto* bits_option = app.add_option("--bits", o.bits, "widths, a list (8,4,2,1)")
                          ->delimiter(',')
                          ->check(CLI::IsMember(std::vector<int>{1, 2, 4, 8}));
  app.add_option("--group", o.groups, "group sizes, a list; -1: one group per channel (128)")
      ->delimiter(',')
      ->check(CLI::Range(-1, 1 << 20));
  app.add_option("--zeros", zeros, "kinds of zeros, a list (int)")
      ->delimiter(',')
      ->check(CLI::IsMember(keys_of(kZeroNames)));
  app.add_option("--dtype", dtypes, "activation types, a list (f16)")
      ->delimiter(',')
      ->check(CLI::IsMember(keys_of(kDTypeNames)));
  app.add_option("--mode", modes,
                 "plain kernel nodes, programmatic dependent launch, or both (isolated)")
      ->delimiter(',')
      ->check(CLI::IsMember(keys_of(kModeNames)));
  app.add_flag("--act-order", o.act_order, "columns belong to groups in random order (g_idx)");
  app.add_flag("--bias", o.bias, "add a bias");
  app.add_flag("--host", o.host,
               "also time pack_kernel_layout, load and prepare_params, for the first shape");
  app.add_option("--kernel", o.kernel, "force this row of the kernel table")
      ->check(CLI::Range(0, kKernelCount - 1));
  app.add_option("--cluster", o.cluster,
                 "force this many CTAs to split K (decode: 1, 2, 4, 8; sm90a prefill: 1 to 8)")
      ->check(CLI::Range(1, 8));
  app.add_option("--warps-n", o.warps_n, "force this many warps side by side (decode kernels)")
      ->check(CLI::IsMember(std::vector<int>{1, 2, 4, 8}));
  app.add_option("--multicast", o.multicast,
                 "force this many CTAs to share x (sm90a prefill kernels)")
      ->check(CLI::IsMember(std::vector<int>{1, 2}));
  app.add_flag("--one-launch", o.one_launch, "no launch of their own for the last channels");
  app.add_flag("--batch-invariant", o.batch_invariant,
               "ask for rows that do not depend on the batch");
  app.add_option("--min-bytes", min_megabytes, "MB of weights to rotate through")
      ->check(CLI::Range(1.0, 100000.0))
      ->capture_default_str();
  auto* repetitions_option = app.add_option("--repetitions", o.repetitions, "timed replays a case")
                                 ->check(CLI::Range(1, 1000))
                                 ->capture_default_str();
  app.add_option("--filter", o.filter, "only cases whose progress line matches this expression");
  app.add_flag("--quick", quick, "a few cases of one shape, 3 repetitions");
  app.add_option("--json", o.json, "write the results here");

  try {
    app.parse(argc, argv);
    for (const int group : o.groups) {
      if (group == 0) throw CLI::ValidationError("--group", "0 is no group size");
    }
    if (!o.filter.empty()) std::regex{o.filter};
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = app.exit(error) == 0 ? 0 : 1;
    return parsed;
  } catch (const std::regex_error& error) {
    fmt::print(stderr, "--filter: {}\n", error.what());
    parsed.exit_code = 1;
    return parsed;
  }

  if (quick) {
    if (shapes_option->empty() && model.empty()) shapes = {"8192x8192"};
    if (batch_option->empty()) o.batches = {1, 8, 64, 1024};
    if (bits_option->empty()) o.bits = {4};
    if (repetitions_option->empty()) o.repetitions = 3;
  }
  for (const std::string& text : shapes) o.shapes.push_back(parse_shape(text));
  for (const Model& candidate : kModels) {
    if (candidate.name != model) continue;
    o.model = &candidate;
    o.shapes.clear();
    for (const NamedShape& linear : candidate.linears) o.shapes.push_back(linear.shape);
  }
  o.zeros = values_of(zeros, kZeroNames);
  o.dtypes = values_of(dtypes, kDTypeNames);
  o.modes = values_of(modes, kModeNames);
  o.min_bytes = min_megabytes * 1e6;
  return parsed;
}

std::vector<Case> enumerate_cases(const Options& o) {
  std::vector<Case> cases;
  for (const DType dtype : o.dtypes) {
    for (const Zeros zeros : o.zeros) {
      for (const int group : o.groups) {
        for (const int bits : o.bits) {
          for (const Shape& shape : o.shapes) {
            for (const Mode mode : o.modes) {
              for (const std::int64_t m : o.batches) {
                cases.push_back({{shape, bits, dtype, zeros, group}, m, mode});
              }
            }
          }
        }
      }
    }
  }
  if (!o.filter.empty()) {
    const std::regex pattern(o.filter);
    std::erase_if(cases, [&](const Case& c) { return !std::regex_search(to_string(c), pattern); });
  }
  return cases;
}

}  // namespace mpq::bench
