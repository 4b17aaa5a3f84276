// An authority and the certificates that it issues, made with the `openssl` command in a folder.
#pragma once

#include <cstdlib>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "troupe/transport/tls_files.hpp"

namespace troupe::transport {

/// Files bear the names NAME.pem and NAME.key, those of the authority its own name.
class Authority {
public:
  explicit Authority(std::string folder, std::string name = "authority")
      : folder_{std::move(folder)}, name_{std::move(name)} {
    run("openssl req -x509 -newkey ed25519 -noenc -days 30 -subj /CN=" + name_ + " -keyout " + name_
        + ".key -out " + name_ + ".pem");
  }

  /// Issues a certificate. `more` may change days and extensions.
  TlsFiles issue(const std::string& name, const std::string& more = "-days 30") const {
    run("openssl req -newkey ed25519 -noenc -subj /CN=" + name + " -keyout " + name + ".key -out "
        + name + ".csr && openssl x509 -req -in " + name + ".csr -CA " + name_ + ".pem -CAkey "
        + name_ + ".key -set_serial 1 -out " + name + ".pem " + more);
    return {path(name + ".pem"), path(name + ".key"), path(name_ + ".pem")};
  }

  /// Runs a shell line in the folder.
  void run(const std::string& line) const {
    const auto command = "cd '" + folder_ + "' && { " + line + "; } 2> openssl.said";
    ASSERT_EQ(std::system(command.c_str()), 0) << line << ": needs the Debian package openssl";
  }

  [[nodiscard]] std::string path(const std::string& file) const { return folder_ + "/" + file; }

private:
  std::string folder_;
  std::string name_;
};

}  // namespace troupe::transport
