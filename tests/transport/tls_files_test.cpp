#include "troupe/transport/tls_files.hpp"

#include <string>

#include <gtest/gtest.h>
#include <openssl/err.h>
#include <sys/stat.h>

#include "../storage/temporary_folder.hpp"
#include "authority.hpp"

namespace troupe::transport {

using storage::read_file;
using storage::TemporaryFolder;
using storage::write_file;

struct Tls : ::testing::Test {
  static std::string refusal(const TlsFiles& with, TlsSide side = TlsSide::node) {
    const auto mark = check_tls_files(with, side);
    return mark ? "none" : mark.error().context;
  }
  [[nodiscard]] std::string certificate() const {
    return "the TLS certificate " + files.certificate_path;
  }
  [[nodiscard]] std::string key() const { return "the TLS key " + files.key_path; }
  [[nodiscard]] std::string authority_file() const {
    return "the TLS authority " + files.authority_path;
  }
  /// `certificate`, as whoever trusts the authority finds it.
  [[nodiscard]] std::string not_accepted(const TlsFiles& with, const std::string& why) const {
    return "the TLS certificate " + with.certificate_path + " is not accepted by who trusts "
           + with.authority_path + ": " + why;
  }

  TemporaryFolder folder;
  Authority authority{folder.path()};
  TlsFiles files = authority.issue("node");
};

TEST_F(Tls, IsReadyWithThreeGoodFiles) {
  EXPECT_EQ(refusal(files, TlsSide::node), "none");
  EXPECT_EQ(refusal(files, TlsSide::director), "none");
}

TEST_F(Tls, MarksAnAuthorityByItsCertificatesAlone) {
  const auto mark = check_tls_files(files, TlsSide::node);
  ASSERT_TRUE(mark) << mark.error().context;
  EXPECT_NE(*mark, no_tls);
  EXPECT_EQ(*check_tls_files(authority.issue("other"), TlsSide::node), *mark);
  const auto text = read_file(files.authority_path);
  write_file(files.authority_path, "a remark\n" + text + "another\n");
  EXPECT_EQ(*check_tls_files(files, TlsSide::node), *mark);
  const Authority second{folder.path(), "second"};
  write_file(files.authority_path, text + read_file(second.path("second.pem")));
  const auto of_two = check_tls_files(files, TlsSide::node);
  ASSERT_TRUE(of_two) << of_two.error().context;
  EXPECT_NE(*of_two, *mark);
}

TEST_F(Tls, NeedsAllThreeFiles) {
  for (auto TlsFiles::*path :
       {&TlsFiles::certificate_path, &TlsFiles::key_path, &TlsFiles::authority_path}) {
    auto two = files;
    (two.*path).clear();
    EXPECT_EQ(refusal(two),
              "TLS needs three files: a certificate, its key, and the authority's certificate");
  }
}

TEST_F(Tls, NamesAFileThatCannotBeRead) {
  const std::string advice = ": No such file or directory; name a file in PEM form";
  auto others = files;
  others.certificate_path = folder / "none";
  EXPECT_EQ(refusal(others), "cannot open the TLS certificate " + (folder / "none") + advice);
  others = files;
  others.key_path = folder / "none";
  EXPECT_EQ(refusal(others), "cannot open the TLS key " + (folder / "none") + advice);
  others = files;
  others.authority_path = folder.path();
  EXPECT_EQ(refusal(others), "the TLS authority " + folder.path() + " is not a regular file");
}

TEST_F(Tls, NamesAFileThatHoldsSomethingElse) {
  const auto good = read_file(files.certificate_path);
  const std::string expected =
      " holds no certificate in PEM form: expected a line -----BEGIN CERTIFICATE-----";
  const std::string damaged = " holds a certificate that is damaged: copy the file anew";
  for (const auto* bytes : {"", "noise"}) {
    write_file(files.certificate_path, bytes);
    EXPECT_EQ(refusal(files), certificate() + expected) << bytes;
  }
  for (const auto& bytes : {good.substr(0, 100), good + good.substr(0, 200)}) {
    write_file(files.certificate_path, bytes);
    EXPECT_EQ(refusal(files), certificate() + damaged) << bytes;
  }
  write_file(files.certificate_path, std::string((std::size_t{1} << 20U) + 1, '\n'));
  EXPECT_EQ(refusal(files), certificate() + " has more than 1 MiB: it is no file in PEM form");
  write_file(files.certificate_path, good);
  const auto key_text = read_file(files.key_path);
  write_file(files.key_path, good);
  EXPECT_EQ(refusal(files), key()
                                + " holds no private key in PEM form: expected a line "
                                  "-----BEGIN PRIVATE KEY-----");
  write_file(files.key_path, key_text);
  write_file(files.authority_path, key_text);
  EXPECT_EQ(refusal(files), authority_file() + expected);
}

TEST_F(Tls, HasAKeyThatIsItsOwnersAlone) {
  for (const mode_t mode : {0640U, 0604U, 0620U, 0601U, 0777U}) {
    ::chmod(files.key_path.c_str(), mode);
    EXPECT_EQ(refusal(files), "others than its owner have access to " + key() + ": run  chmod 600 "
                                  + files.key_path);
  }
}

TEST_F(Tls, HasAKeyWithoutAPassphrase) {
  authority.run("openssl pkey -in node.key -aes256 -passout pass:word -out encrypted.key");
  files.key_path = folder / "encrypted.key";
  EXPECT_EQ(refusal(files), key()
                                + " has a passphrase, which nobody can enter here: take it off "
                                  "with  openssl pkey -in "
                                + files.key_path + " -out NEW");
}

TEST_F(Tls, HasTheKeyOfItsCertificate) {
  files.key_path = authority.issue("other").key_path;
  EXPECT_EQ(refusal(files), key() + " does not belong to the certificate " + files.certificate_path
                                + ": give the two that were made together");
}

TEST_F(Tls, HasACertificateThatIsInTime) {
  const auto expired = authority.issue("expired", "-days -1");
  const auto sentence = refusal(expired);
  EXPECT_TRUE(
      sentence.starts_with("the TLS certificate " + expired.certificate_path + " expired on "))
      << sentence;
  EXPECT_TRUE(sentence.ends_with(" GMT: make a new one")) << sentence;
  authority.run(
      "openssl req -new -key authority.key -subj /CN=authority -out authority.csr && "
      "openssl x509 -req -in authority.csr -key authority.key -days -1 "
      "-out authority.pem");
  const auto late = refusal(files);
  EXPECT_TRUE(late.starts_with(authority_file() + " expired on ")) << late;
}

TEST_F(Tls, HasIntermediateCertificatesThatAreInTime) {
  write_file(folder / "ca.ext", "basicConstraints=CA:TRUE\n");
  const Authority between{folder.path(), "between"};
  const auto chain = [&](const std::string& days) {
    const auto issuer = authority.issue("between", "-extfile ca.ext -days " + days);
    auto node = between.issue("node");
    write_file(node.certificate_path,
               read_file(node.certificate_path) + read_file(issuer.certificate_path));
    node.authority_path = files.authority_path;
    return node;
  };
  EXPECT_EQ(refusal(chain("30")), "none");
  const auto late = refusal(chain("-1"));
  EXPECT_TRUE(late.starts_with("certificate 2 in " + files.certificate_path + " expired on "))
      << late;
}

TEST_F(Tls, HasACertificateOfItsAuthority) {
  const Authority other{folder.path(), "other"};
  files.authority_path = other.path("other.pem");
  EXPECT_EQ(refusal(files),
            not_accepted(files,
                         "unable to get local issuer certificate; have this authority issue "
                         "one for a client"));
  write_file(folder / "client.ext", "extendedKeyUsage=clientAuth\n");
  const auto client = authority.issue("client", "-extfile client.ext");
  EXPECT_EQ(refusal(client), "none");
  EXPECT_EQ(refusal(client, TlsSide::director),
            not_accepted(client,
                         "unsuitable certificate purpose; have this authority issue one "
                         "for a server"));
}

TEST_F(Tls, LeavesNoErrorToOthersOnItsThread) {
  EXPECT_EQ(refusal(files), "none");
  EXPECT_EQ(ERR_peek_error(), 0U);
  for (const auto* path : {&files.key_path, &files.certificate_path}) {
    write_file(*path, "noise");
    EXPECT_NE(refusal(files), "none");
    EXPECT_EQ(ERR_peek_error(), 0U) << *path;
  }
}

}  // namespace troupe::transport
