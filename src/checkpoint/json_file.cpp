#include "checkpoint/json_file.hpp"

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/text.hpp"

namespace mpq::detail {

namespace {

constexpr std::uintmax_t kMaxBytes = 32u << 20;
constexpr int kMaxDepth = 64;

std::string read_text(const std::filesystem::path& path) {
  std::error_code error;
  const auto bytes = std::filesystem::is_regular_file(path, error)
                         ? std::filesystem::file_size(path, error)
                         : std::uintmax_t{0};
  std::ifstream in(path, std::ios::binary);
  if (error || !in || !std::filesystem::is_regular_file(path, error)) {
    fail(ErrorCode::io_failure, "{}: cannot be read", path.string());
  }
  if (bytes > kMaxBytes) {
    fail(ErrorCode::invalid_file, "{}: {} bytes of JSON, limit {}", path.string(), bytes,
         kMaxBytes);
  }
  std::string text(static_cast<std::size_t>(bytes), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.gcount() != static_cast<std::streamsize>(text.size())) {
    fail(ErrorCode::io_failure, "{}: read {} of {} bytes", path.string(), in.gcount(), text.size());
  }
  return text;
}

}  // namespace

template <class Json>
Json read_json_object(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  // The parser takes a zero byte for the end of its input.
  if (const auto zero = text.find('\0'); zero != std::string::npos) {
    fail(ErrorCode::invalid_file, "{}: not JSON at byte {}", path.string(), zero);
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, typename Json::parse_event_t event, Json& value) {
    using Event = typename Json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxDepth) {
      fail(ErrorCode::invalid_file, "{}: nested deeper than {} levels", path.string(), kMaxDepth);
    }
    if (event == Event::object_start) {
      keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key) {
      const auto& key = value.template get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        fail(ErrorCode::invalid_file, "{}: key {} is twice in one object", path.string(),
             in_quotes(key));
      }
    }
    return true;
  };
  try {
    Json object = Json::parse(text, check);
    if (!object.is_object()) {
      fail(ErrorCode::invalid_file, "{}: {}, expected an object", path.string(),
           object.type_name());
    }
    return object;
  } catch (const typename Json::parse_error& error) {
    fail(ErrorCode::invalid_file, "{}: not JSON at byte {}", path.string(),
         error.byte == 0 ? 0 : error.byte - 1);
  } catch (const typename Json::exception& error) {  // a number that no double holds
    fail(ErrorCode::invalid_file, "{}: not JSON: {}", path.string(), in_quotes(error.what()));
  }
}

template nlohmann::json read_json_object(const std::filesystem::path&);
template SettingsJson read_json_object(const std::filesystem::path&);

}  // namespace mpq::detail
