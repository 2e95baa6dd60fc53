#include "site.h"

#include <map>
#include <mutex>

namespace cuda_emulator {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, Site> sites;
  std::string skipped;
};

Registry& registry() {
  static Registry* registry = new Registry;  // never destroyed: launches may run at exit
  return *registry;
}

Site& register_site(const std::string& name) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  Site& site = r.sites.try_emplace(name, name).first->second;
  site.skipped = name == r.skipped;
  return site;
}

}  // namespace

std::string describe(Location where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string executed_barriers(const char* separator) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  std::string names;
  for (const auto& [name, site] : r.sites)
    if (site.executed) names += (names.empty() ? "" : separator) + name;
  return names;
}

void forget_executed_barriers() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (auto& [name, site] : r.sites) site.executed = false;
}

void skip_barrier(const std::string& name) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.skipped = name;
  for (auto& [key, site] : r.sites) site.skipped = key == name;
}

Site& SiteTable::find(const char* primitive, Location where) {
  const char* file = where.file_name();
  const size_t hash = where.line() * 31 + reinterpret_cast<uintptr_t>(primitive);
  Entry& entry = recent_[hash % recent_.size()];
  if (entry.primitive != primitive || entry.file != file || entry.line != where.line()) {
    Site& site = register_site(describe(where) + " " + primitive);
    entry = {primitive, file, where.line(), &site};
  }
  return *entry.site;
}

}  // namespace cuda_emulator
