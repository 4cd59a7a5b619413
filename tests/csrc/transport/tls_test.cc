// TLS without sockets: TlsContext and TlsSession against OpenSSL's own client, over memory.
#include "transport/tls.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tls_client.h"
#include "transport/tls_session.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::test;
using State = TlsSession::State;

namespace {

// Made once for all the tests.
struct Authority {
  Certificate ca{{.name = "ca", .authority = true}};
  Certificate other_ca{{.name = "another ca", .authority = true}};
  Certificate server{{.name = "server", .alternative_names = "DNS:localhost"}, &ca};
  Certificate client{{.name = "alice",
                      .alternative_names = "DNS:alice.example,URI:spiffe://example/alice,"
                                           "IP:10.0.0.1,IP:::1,email:alice@example.com"},
                     &ca};
  Certificate plain_client{{.name = "bob"}, &ca};
  Certificate stranger{{.name = "mallory"}, &other_ca};
  Certificate expired{{.name = "late", .from_s = -7200, .to_s = -3600}, &ca};
};
const Authority& authority() {
  static const Authority made;
  return made;
}

TlsOptions options_for(const Certificate& server, ClientAuth auth = ClientAuth::kNone) {
  TlsOptions options;
  options.certificate_chain.pem = server.certificate();
  options.private_key.pem = server.key();
  options.client_auth = auth;
  if (auth != ClientAuth::kNone) options.client_ca.pem = authority().ca.certificate();
  return options;
}

std::shared_ptr<const TlsContext> context_of(const TlsOptions& options) {
  Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(options);
  REQUIRE_MESSAGE(context, (context ? "" : context.error().message()));
  return std::move(*context);
}

std::shared_ptr<const TlsContext> context_of(ClientAuth auth = ClientAuth::kNone) {
  return context_of(options_for(authority().server, auth));
}

// A session and a client, with the bytes between them in our hands.
struct Pair {
  explicit Pair(const TlsContext& context, const TlsClientOptions& options = {})
      : client(options), session(std::move(*TlsSession::make(context))) {}

  std::string take_sealed() {
    std::string bytes;
    struct iovec vector {};
    while (session->output().front(&vector, 1) == 1) {
      bytes.append(static_cast<const char*>(vector.iov_base), vector.iov_len);
      session->output().pop(vector.iov_len);
    }
    return bytes;
  }
  void to_server(std::string_view bytes) {
    // As a connection does it: a buffer that is gone afterwards.
    const std::string copy(bytes);
    session->put(bytes_of(copy));
    std::vector<std::byte> plain(TlsSession::kRecordBytes);
    while (const std::size_t n = session->read(plain)) {
      received.append(reinterpret_cast<const char*>(plain.data()), n);
    }
  }
  // Carries bytes both ways, at most `piece` at once, until there are none.
  void pump(std::size_t piece = SIZE_MAX) {
    for (;;) {
      const std::string up = client.take();
      for (std::size_t at = 0; at < up.size(); at += std::min(piece, up.size() - at)) {
        to_server(std::string_view(up).substr(at, piece));
      }
      if (session->state() == State::kOpen) session->seal(output);
      const std::string down = take_sealed();
      for (std::size_t at = 0; at < down.size(); at += std::min(piece, down.size() - at)) {
        client.feed(std::string_view(down).substr(at, piece));
      }
      if (up.empty() && down.empty()) return;
    }
  }
  void send(std::string_view plain) { output.append_copy(bytes_of(plain)); }

  TlsClient client;
  std::unique_ptr<TlsSession> session;
  OutputQueue output;    // the server's, plain
  std::string received;  // by the server, plain
};

// A handshake that must fail in this way, with this alert at the client.
void refused(const TlsContext& context, const TlsClientOptions& options, TlsResult result,
             int alert) {
  Pair pair(context, options);
  pair.pump();
  CHECK(pair.session->state() == State::kClosed);
  CHECK(pair.session->result() == result);
  CHECK(pair.session->auth_context() == nullptr);
  CHECK(pair.client.alert() == alert);
  CHECK(pair.received.empty());
}

std::vector<std::string_view> values(const Pair& pair, std::string_view name) {
  REQUIRE(pair.session->auth_context() != nullptr);
  return pair.session->auth_context()->values(name);
}
using Values = std::vector<std::string_view>;

}  // namespace

TEST_CASE("bytes go both ways under TLS 1.2 and 1.3, in pieces of any size") {
  const auto context = context_of();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{4096}, SIZE_MAX}) {
      CAPTURE(version);
      CAPTURE(piece);
      TlsClientOptions options;
      options.min_version = options.max_version = version;
      options.trusted = &authority().ca;
      Pair pair(*context, options);
      // Waits until the handshake is over.
      pair.send("early");
      CHECK(pair.session->seal(pair.output));
      CHECK(pair.output.size() == 5);
      pair.pump(piece);
      REQUIRE(pair.session->state() == State::kOpen);
      REQUIRE(pair.client.open());
      CHECK(pair.client.received == "early");
      CHECK(pair.session->result() == TlsResult::kOk);
      const unsigned char* protocol = nullptr;
      unsigned size = 0;
      SSL_get0_alpn_selected(pair.client.ssl(), &protocol, &size);
      CHECK(std::string_view(reinterpret_cast<const char*>(protocol), size) == "h2");
      pair.client.received.clear();
      const std::string text = pattern(piece == 1 ? 20000 : 300000);
      pair.client.write(text);
      pair.send(text);
      pair.pump(piece);
      CHECK((pair.received == text));
      CHECK((pair.client.received == text));
      CHECK(values(pair, "transport_security_type") == Values{"ssl"});
      CHECK(values(pair, "ssl_tls_version") ==
            Values{version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3"});
      CHECK(values(pair, "ssl_requested_server_name") == Values{"localhost"});
      CHECK_FALSE(pair.session->auth_context()->authenticated());
      CHECK(pair.session->auth_context()->peer_identity().empty());
    }
  }
}

TEST_CASE("TLS 1.3 and a forward-secret AEAD cipher are what a client gets") {
  const auto context = context_of();
  Pair pair(*context);
  pair.pump();
  CHECK(SSL_version(pair.client.ssl()) == TLS1_3_VERSION);
  TlsClientOptions old;
  old.max_version = TLS1_2_VERSION;
  Pair second(*context, old);
  second.pump();
  const SSL_CIPHER* cipher = SSL_get_current_cipher(second.client.ssl());
  REQUIRE(cipher != nullptr);
  CHECK(SSL_CIPHER_is_aead(cipher) == 1);
  CHECK(SSL_CIPHER_get_kx_nid(cipher) == NID_kx_ecdhe);
  CHECK(SSL_get_current_compression(second.client.ssl()) == nullptr);
}

TEST_CASE("without ALPN h2 the handshake ends with no_application_protocol") {
  const auto context = context_of();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    for (const char* alpn : {"", "http/1.1", "h2c", "h"}) {
      CAPTURE(alpn);
      TlsClientOptions options;
      options.max_version = version;
      options.alpn = alpn;
      refused(*context, options, TlsResult::kNoAlpn, SSL_AD_NO_APPLICATION_PROTOCOL);
    }
  }
}

TEST_CASE("TLS 1.1 is refused with protocol_version") {
  TlsClientOptions options;
  options.min_version = TLS1_VERSION;
  options.max_version = TLS1_1_VERSION;
  refused(*context_of(), options, TlsResult::kVersion, SSL_AD_PROTOCOL_VERSION);
}

TEST_CASE("a client that does not trust the server's certificate") {
  TlsClientOptions options;
  options.trusted = &authority().other_ca;
  Pair pair(*context_of(), options);
  pair.pump();
  CHECK(pair.client.failed());
  CHECK(pair.session->state() == State::kClosed);
  CHECK(pair.session->result() == TlsResult::kClientAlert);
}

TEST_CASE("mTLS: who has no certificate that verifies is refused") {
  const auto context = context_of(ClientAuth::kRequire);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClientOptions options;
    options.max_version = version;
    // TLS 1.2 has no alert of its own for it.
    refused(*context, options, TlsResult::kClientCertificate,
            version == TLS1_3_VERSION ? SSL_AD_CERTIFICATE_REQUIRED : SSL_AD_HANDSHAKE_FAILURE);
    options.certificate = &authority().stranger;
    refused(*context, options, TlsResult::kClientCertificate, SSL_AD_UNKNOWN_CA);
    options.certificate = &authority().expired;
    refused(*context, options, TlsResult::kClientCertificate, SSL_AD_CERTIFICATE_EXPIRED);
  }
}

TEST_CASE("mTLS: the client's identity, under gRPC's names") {
  TlsClientOptions options;
  options.certificate = &authority().client;
  for (const ClientAuth auth : {ClientAuth::kRequire, ClientAuth::kRequest}) {
    Pair pair(*context_of(auth), options);
    pair.pump();
    REQUIRE(pair.session->state() == State::kOpen);
    CHECK(values(pair, "x509_common_name") == Values{"alice"});
    CHECK(values(pair, "x509_subject") == Values{"CN=alice,O=Headrace tests"});
    const Values names = {"alice.example", "spiffe://example/alice", "10.0.0.1", "::1",
                          "alice@example.com"};
    CHECK(values(pair, "x509_subject_alternative_name") == names);
    CHECK(values(pair, "peer_spiffe_id") == Values{"spiffe://example/alice"});
    const std::string pem = authority().client.certificate();
    CHECK(values(pair, "x509_pem_cert") == Values{pem});
    CHECK(pair.session->auth_context()->identity_key == "x509_subject_alternative_name");
    CHECK(pair.session->auth_context()->peer_identity() == names);
  }
  options.certificate = &authority().plain_client;
  Pair pair(*context_of(ClientAuth::kRequire), options);
  pair.pump();
  REQUIRE(pair.session->state() == State::kOpen);
  CHECK(pair.session->auth_context()->identity_key == "x509_common_name");
  CHECK(pair.session->auth_context()->peer_identity() == Values{"bob"});
}

TEST_CASE(
    "a requested certificate may be missing, but not bad; one that is not asked for is not seen") {
  TlsClientOptions options;
  Pair without(*context_of(ClientAuth::kRequest), options);
  without.pump();
  CHECK(without.session->state() == State::kOpen);
  CHECK_FALSE(without.session->auth_context()->authenticated());
  options.certificate = &authority().stranger;
  refused(*context_of(ClientAuth::kRequest), options, TlsResult::kClientCertificate,
          SSL_AD_UNKNOWN_CA);
  Pair unasked(*context_of(), options);
  unasked.pump();
  CHECK(unasked.session->state() == State::kOpen);
  CHECK_FALSE(unasked.session->auth_context()->authenticated());
}

TEST_CASE("a revocation list beside the CA is looked at") {
  TlsOptions options = options_for(authority().server, ClientAuth::kRequire);
  options.client_ca.pem += authority().ca.revocation_list(authority().plain_client);
  const auto context = context_of(options);
  TlsClientOptions revoked;
  revoked.certificate = &authority().plain_client;
  refused(*context, revoked, TlsResult::kClientCertificate, SSL_AD_CERTIFICATE_REVOKED);
  TlsClientOptions good;
  good.certificate = &authority().client;
  Pair pair(*context, good);
  pair.pump();
  CHECK(pair.session->state() == State::kOpen);
}

TEST_CASE("what is not TLS ends at once") {
  const auto context = context_of();
  for (const std::string& bytes :
       {std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), std::string("GET / HTTP/1.1\r\n\r\n"),
        std::string(1000, '\0'), std::string(1000, '\xff'), pattern(5000),
        std::string("\x16\x03\x01\xff\xff", 5), std::string("\x17\x03\x03\x00\x05hello", 10)}) {
    for (const std::size_t piece : {std::size_t{1}, bytes.size()}) {
      Pair pair(*context);
      for (std::size_t at = 0; at < bytes.size(); at += piece) {
        pair.to_server(std::string_view(bytes).substr(at, piece));
      }
      CHECK(pair.session->state() == State::kClosed);
      CHECK(pair.session->result() == TlsResult::kMalformed);
      CHECK(pair.received.empty());
    }
  }
}

TEST_CASE("a ClientHello with any byte changed never opens, hangs or crashes the session wrongly") {
  const auto context = context_of();
  const std::string hello = Pair(*context).client.take();
  REQUIRE(hello.size() > 100);
  for (std::size_t at = 0; at < hello.size(); ++at) {
    std::string changed = hello;
    changed[at] = static_cast<char>(changed[at] ^ 0x55);
    Pair pair(*context);
    pair.to_server(changed);
    CHECK(pair.session->state() != State::kOpen);
  }
}

TEST_CASE("a record cut short or changed gives nothing, and ends the session") {
  const auto context = context_of();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClientOptions options;
    options.max_version = version;
    Pair cut(*context, options);
    cut.pump();
    cut.client.write("hello");
    const std::string record = cut.client.take();
    cut.to_server(std::string_view(record).substr(0, record.size() - 1));
    CHECK(cut.session->state() == State::kOpen);
    CHECK(cut.received.empty());
    cut.to_server(std::string_view(record).substr(record.size() - 1));
    CHECK(cut.received == "hello");

    cut.client.write("world");
    std::string changed = cut.client.take();
    changed.back() = static_cast<char>(changed.back() ^ 1);
    cut.to_server(changed);
    CHECK(cut.received == "hello");
    CHECK(cut.session->state() == State::kClosed);
    CHECK(cut.session->result() == TlsResult::kOk);  // the handshake's
    cut.client.feed(cut.take_sealed());
    CHECK(cut.client.alert() == SSL_AD_BAD_RECORD_MAC);
    // Nothing goes in or out any more.
    cut.to_server("more");
    cut.send("late");
    CHECK_FALSE(cut.session->seal(cut.output));
    CHECK(cut.take_sealed().empty());
  }
}

TEST_CASE("close_notify from either side") {
  const auto context = context_of();
  Pair client_first(*context);
  client_first.pump();
  client_first.client.write("last words");
  client_first.client.close();
  client_first.pump();
  CHECK(client_first.received == "last words");
  CHECK(client_first.session->state() == State::kClosed);
  CHECK(client_first.client.closed_by_server());

  Pair server_first(*context);
  server_first.pump();
  server_first.send("last words");
  CHECK(server_first.session->seal(server_first.output));
  server_first.session->close();
  server_first.client.feed(server_first.take_sealed());
  CHECK(server_first.client.received == "last words");
  CHECK(server_first.client.closed_by_server());
  CHECK_FALSE(server_first.client.failed());

  // In the middle of the handshake there is nothing to close.
  Pair early(*context);
  early.session->close();
  CHECK(early.session->state() == State::kClosed);
  CHECK(early.take_sealed().empty());
}

TEST_CASE("a session is resumed, with the client's identity; not after a reload") {
  const auto context = context_of(ClientAuth::kRequire);
  const auto reloaded = context_of(ClientAuth::kRequire);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClientOptions options;
    options.max_version = version;
    options.certificate = &authority().client;
    Pair first(*context, options);
    first.pump();
    CHECK_FALSE(first.session->resumed());
    SSL_SESSION* session = first.client.take_session();
    REQUIRE(session != nullptr);
    options.session = session;
    Pair second(*context, options);
    second.pump();
    CHECK(second.session->state() == State::kOpen);
    CHECK(second.session->resumed());
    CHECK(second.client.resumed());
    CHECK(values(second, "ssl_session_reused") == Values{"true"});
    CHECK(values(second, "x509_common_name") == Values{"alice"});

    Pair third(*reloaded, options);
    third.pump();
    CHECK(third.session->state() == State::kOpen);
    CHECK_FALSE(third.session->resumed());
    SSL_SESSION_free(session);
  }
}

TEST_CASE("TLS 1.2 renegotiation is refused") {
  TlsClientOptions options;
  options.max_version = TLS1_2_VERSION;
  Pair pair(*context_of(), options);
  pair.pump();
  REQUIRE(pair.client.open());
  SSL_renegotiate(pair.client.ssl());
  SSL_do_handshake(pair.client.ssl());
  const std::string hello = pair.client.take();
  REQUIRE_FALSE(hello.empty());
  pair.to_server(hello);
  const std::string answer = pair.take_sealed();
  // One alert, not a ServerHello with its certificate.
  CHECK(answer.size() < 64);
}

TEST_CASE("a session outlives its context") {
  auto context = context_of();
  Pair pair(*context);
  pair.pump();
  context.reset();
  pair.client.write("still");
  pair.send("here");
  pair.pump();
  CHECK(pair.received == "still");
  CHECK(pair.client.received == "here");
}

TEST_CASE("seal() holds little more than its bound, in full records") {
  Pair pair(*context_of());
  pair.pump();
  // As DATA frames come: a small header and a large view.
  const std::string body = pattern(16384);
  const BufferRef owner = buffer_of(body);
  std::string expected;
  for (int i = 0; i < 500; ++i) {
    pair.send("123456789");
    pair.output.append_view(owner, owner.span());
    expected += "123456789" + body;
  }
  std::size_t rounds = 0;
  std::size_t sealed = 0;
  while (!pair.output.empty()) {
    REQUIRE(pair.session->seal(pair.output));
    CHECK(pair.session->output().size() < 150 * 1024);
    const std::string bytes = pair.take_sealed();
    sealed += bytes.size();
    pair.client.feed(bytes);
    ++rounds;
  }
  CHECK((pair.client.received == expected));
  CHECK(rounds > 50);
  // 22 bytes a record of 16 KiB.
  CHECK(sealed - expected.size() < expected.size() / 600);
}

TEST_CASE("options that cannot be used are named with the reason") {
  const Authority& all = authority();
  const auto problem = [](const TlsOptions& options) {
    const Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(options);
    REQUIRE_FALSE(context);
    CHECK(context.error().code() == StatusCode::kInvalidArgument);
    return context.error().message();
  };
  CHECK(problem({}) == "TLS certificate: is missing");
  TlsOptions options = options_for(all.server);
  options.private_key.pem.clear();
  CHECK(problem(options) == "TLS private key: is missing");
  options.private_key.file = "/nonexistent/key.pem";
  CHECK(problem(options) == "TLS private key /nonexistent/key.pem: No such file or directory");
  options.private_key.file = "/";
  CHECK(problem(options).starts_with("TLS private key /: "));
  options = options_for(all.server);
  options.private_key.pem = all.client.key();
  CHECK(problem(options).find("does not belong to the certificate") != std::string::npos);
  options.private_key.pem = all.server.key("secret");
  CHECK(problem(options) == "TLS private key: the key is encrypted; store it without a password");
  options.private_key.pem = all.server.certificate();
  CHECK(problem(options).find("no private key") != std::string::npos);
  options = options_for(all.server);
  options.certificate_chain.pem = "nonsense";
  CHECK(problem(options) == "TLS certificate: no certificate in PEM form in it");
  options.certificate_chain.pem = all.server.certificate();
  options.certificate_chain.pem[100] = options.certificate_chain.pem[100] == 'A' ? 'B' : 'A';
  options.certificate_chain.pem[101] = '!';
  CHECK(problem(options).starts_with("TLS certificate: certificate 1: "));
  options = options_for(all.server);
  options.client_auth = ClientAuth::kRequire;
  CHECK(problem(options) == "TLS client CA: is missing");
  options.client_ca.pem = all.ca.key();
  CHECK(problem(options).starts_with("TLS client CA: "));
  options.client_ca.pem = "nonsense";
  CHECK(problem(options).starts_with("TLS client CA: "));
}

TEST_CASE("files are read each time a context is made, and the certificate's end is known") {
  std::string folder = "/tmp/headrace-tls-XXXXXX";
  REQUIRE(::mkdtemp(folder.data()) != nullptr);
  const auto write = [&](const Certificate& certificate) {
    std::ofstream(folder + "/cert.pem") << certificate.certificate();
    std::ofstream(folder + "/key.pem") << certificate.key();
  };
  TlsOptions options;
  options.certificate_chain.file = folder + "/cert.pem";
  options.private_key.file = folder + "/key.pem";
  write(authority().server);
  const auto first = context_of(options);
  const Certificate longer({.name = "longer", .to_s = 48 * 3600});
  write(longer);
  const auto second = context_of(options);
  CHECK(second->not_after() - first->not_after() > 20 * 3600);
  const auto name = [](const TlsContext& context) {
    Pair pair(context);
    pair.pump();
    X509* shown = SSL_get0_peer_certificate(pair.client.ssl());
    char text[64] = "";
    X509_NAME_get_text_by_NID(X509_get_subject_name(shown), NID_commonName, text, sizeof(text));
    return std::string(text);
  };
  CHECK(name(*first) == "server");
  CHECK(name(*second) == "longer");
  std::filesystem::remove_all(folder);
}
