#include "rpc/call.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <optional>

#include "rpc/grpc_codec.h"

namespace headrace {
namespace {

constexpr HeaderField kStatus200{":status", "200", true};
constexpr HeaderField kContentType{"content-type", "application/grpc", true};
constexpr HeaderField kAcceptEncodingField{"grpc-accept-encoding", kAcceptEncoding, true};
constexpr HeaderField kGrpcOk{"grpc-status", "0", true};

// Above this a message's memory grows with what arrives instead of with what its prefix claims.
constexpr std::size_t kTrustedBytes = 64 * 1024;
// What a client may send ahead of a large message that is taken as it comes.
constexpr std::size_t kLargeWindow = 1 << 20;

bool grpc_content_type(std::string_view value) {
  constexpr std::string_view kPrefix = "application/grpc";
  return value.starts_with(kPrefix) &&
         (value.size() == kPrefix.size() || value[kPrefix.size()] == '+' ||
          value[kPrefix.size()] == ';');
}

constexpr std::string_view kOutOfMemory = "the server is out of memory for messages";

// No exception: this runs inside nghttp2's callbacks, which are C.
std::optional<BufferRef> try_allocate(std::size_t bytes) {
  try {
    return BufferRef::allocate(bytes);
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
}

bool reserved_header(std::string_view name) {
  return name.starts_with("grpc-") || name == "te" || name == "content-type";
}

std::string_view code_text(StatusCode code) {
  constexpr std::array<std::string_view, 17> kText = {
      "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"};
  return kText[static_cast<std::size_t>(code)];
}

// A longer one would not fit into the header list that clients accept (8 KiB at least), and the whole
// status would be lost.
constexpr std::size_t kMaxMessageHeader = 4096;

std::string grpc_message(std::string_view text) {
  std::string message = percent_encode(text.substr(0, kMaxMessageHeader));
  if (text.size() <= kMaxMessageHeader && message.size() <= kMaxMessageHeader) return message;
  // Cut between characters: `kept` bytes of text take `size` bytes encoded.
  constexpr std::string_view kCut = "...";
  std::size_t kept = 0;
  std::size_t size = 0;
  for (std::size_t i = 0; i < text.size() && size <= kMaxMessageHeader - kCut.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xC0) != 0x80) kept = i;
    size += byte >= 0x20 && byte <= 0x7E && byte != '%' ? 1 : 3;
  }
  message = percent_encode(text.substr(0, kept));
  return message.append(kCut);
}

// A path may be any bytes; a status message is text, and clients fail to decode what is none.
std::string printable(std::string text) {
  for (char& c : text) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return text;
}

void append(std::vector<HeaderField>& fields, const Metadata* metadata) {
  if (metadata == nullptr) return;
  for (const auto& [name, value] : *metadata) fields.push_back({name, value});
}

}  // namespace

void Handler::on_unary(Call& call, BufferRef) {
  call.fail(Status::unimplemented("the method takes a stream of messages"));
}

void Handler::on_open(Call& call) {
  call.fail(Status::unimplemented("the method takes one message"));
}

void Handler::on_message(Call&, BufferRef) {}

void Handler::on_half_close(Call&) {}

void Handler::on_writable(Call&) {}

uint64_t Call::id() const { return uint64_t{generation_} << 32 | index_; }

TimePoint Call::now() const { return set_->now_(); }

void Call::open(Stream& stream) {
  stream_ = &stream;
  state_ = State::kReceiving;
  path_.clear();
  text_.clear();
  fields_.clear();
  post_ = content_type_ok_ = bad_timeout_ = bad_encoding_ = false;
  headers_sent_ = false;
  compress_messages_ = true;
  encoding_ = response_encoding_ = Encoding::kIdentity;
  accept_encoding_.clear();
  deadline_ = kNever;
  method_ = nullptr;
  principal_.reset();
  prefix_size_ = 0;
  have_message_ = compressed_ = false;
  message_size_ = received_ = 0;
  inflated_ = 0;
  glitches_ = 0;
  credit_ = held_offset_ = delivered_ = 0;
  delivering_ = half_closed_ = end_told_ = false;
  context = nullptr;
}

void Call::on_header(std::string_view name, std::string_view value) {
  if (!name.empty() && name[0] == ':') {
    if (name == ":path") path_ = value;
    if (name == ":method") post_ = value == "POST";
    return;
  }
  if (name == "content-type") {
    content_type_ok_ = grpc_content_type(value);
  } else if (name == "grpc-timeout") {
    const std::optional<Nanoseconds> timeout = parse_grpc_timeout(value);
    bad_timeout_ |= !timeout;
    if (timeout) deadline_ = saturating_add(now(), *timeout);
  } else if (name == "grpc-encoding") {
    const std::optional<Encoding> encoding = encoding_from_name(value);
    bad_encoding_ |= !encoding;
    if (encoding) encoding_ = *encoding;
  } else if (name == "grpc-accept-encoding") {
    accept_encoding_ = value;
  }
  if (reserved_header(name)) return;
  text_.append(name).append(value);
  fields_.push_back({static_cast<uint32_t>(name.size()), static_cast<uint32_t>(value.size())});
}

Metadata Call::metadata() const {
  Metadata metadata;
  metadata.reserve(fields_.size());
  std::size_t at = 0;
  for (const Field& field : fields_) {
    metadata.emplace_back(text_.substr(at, field.name_size),
                          text_.substr(at + field.name_size, field.value_size));
    at += field.name_size + field.value_size;
  }
  return metadata;
}

std::string_view Call::find_metadata(std::string_view name) const {
  std::string_view rest = text_;
  for (const Field& field : fields_) {
    if (rest.substr(0, field.name_size) == name) {
      return rest.substr(field.name_size, field.value_size);
    }
    rest.remove_prefix(field.name_size + field.value_size);
  }
  return {};
}

void Call::on_headers_end(bool too_large) {
  if (!content_type_ok_ && !too_large) {
    stream_->count_glitches(1);
    // Not a gRPC client: HTTP's own answer (PROTOCOL-HTTP2.md, Content-Type).
    const std::array<HeaderField, 1> headers = {{{":status", "415", true}}};
    stream_->send_headers_only(headers);
    return finished(StatusCode::kUnknown);
  }
  if (too_large) {
    return fail(Status::resource_exhausted("received metadata size exceeds the limit"));
  }
  if (!set_->refuse_.ok()) return fail(set_->refuse_);
  if (!post_) return reject(Status::unimplemented("gRPC calls are POST requests"));
  method_ = set_->methods_.find(path_);
  if (method_ == nullptr)
    return reject(Status::unimplemented("Method not found: " + printable(path_)));
  if (set_->access_ && !authorize()) return;
  if (bad_timeout_) return reject(Status::internal("malformed grpc-timeout"));
  if (bad_encoding_) {
    return reject(Status::unimplemented("grpc-encoding is not supported; use one of " +
                                        std::string(kAcceptEncoding)));
  }
  if (deadline_ != kNever) set_->timers_.schedule(timer_, deadline_);
  if (set_->compression_ != Encoding::kIdentity) set_compression(set_->compression_);
  if (!streams()) return;
  stream_->hold_window();
  state_ = State::kHandled;
  method_->handler->on_open(*this);
}

void Call::reject(const Status& status) {
  stream_->count_glitches(1);
  abort(status);
}

bool Call::awaits_body() const {
  if (state_ == State::kReceiving) return true;
  // A streamed request may rest between messages, and until its handler asks for one.
  return state_ == State::kHandled && streams() && credit_ != 0 && !half_closed_ &&
         (prefix_size_ != 0 || (have_message_ && received_ < message_size_));
}

bool Call::authorize() {
  const AccessPolicy& policy = set_->access_->get();
  if (policy.open() && method_->right != Right::kNone) return true;
  AccessPolicy::Caller caller;
  caller.connection = auth_context().get();
  std::size_t at = 0;
  for (const Field& field : fields_) {
    const std::string_view text(text_);
    take_credential(text.substr(at, field.name_size),
                    text.substr(at + field.name_size, field.value_size), caller);
    at += field.name_size + field.value_size;
  }
  AccessPolicy::Decision decision = policy.decide(method_->right, caller);
  principal_ = std::move(decision.principal);
  if (!decision.status.ok()) {
    reject(decision.status);
    return false;
  }
  const Right right = method_->right;
  if (right == Right::kCall || (right == Right::kInfer && !streams())) {
    const Status quota = take_quota();
    if (!quota.ok()) fail(quota);
    return quota.ok();
  }
  return true;
}

Status Call::take_quota() {
  if (!set_->access_) return {};
  Status status = set_->access_->get().take_quota(principal_.get(), now());
  if (!status.ok()) set_->counters_.quota_refused.add();
  return status;
}

bool Call::reserve(std::size_t bytes) {
  if (set_->budget_.take(bytes)) {
    charged_ += bytes;
    stream_->charge(bytes);
    return true;
  }
  abort(Status::resource_exhausted(std::string(kBudgetFull)));
  return false;
}

bool Call::begin_message() {
  const auto flag = static_cast<uint8_t>(prefix_[0]);
  uint32_t length = 0;
  for (std::size_t i = 1; i < kPrefixBytes; ++i) {
    length = length << 8 | static_cast<uint8_t>(prefix_[i]);
  }
  if (flag > 1) {
    reject(
        Status::internal("malformed gRPC message: the compressed flag is " + std::to_string(flag)));
    return false;
  }
  if (flag == 1 && encoding_ == Encoding::kIdentity) {
    reject(Status::internal("compressed message without a grpc-encoding"));
    return false;
  }
  if (have_message_) {
    reject(Status::internal("a unary call has one request message, this one has more"));
    return false;
  }
  if (length > method_->max_message_bytes) {
    reject(Status::resource_exhausted("Received message larger than max (" +
                                      std::to_string(length) + " vs. " +
                                      std::to_string(method_->max_message_bytes) + ")"));
    return false;
  }
  have_message_ = true;
  compressed_ = flag == 1;
  message_size_ = length;
  received_ = 0;
  const std::size_t first = std::min<std::size_t>(length, kTrustedBytes);
  if (!reserve(first)) return false;
  std::optional<BufferRef> message = try_allocate(first);
  if (!message) {
    abort(Status::resource_exhausted(std::string(kOutOfMemory)));
    return false;
  }
  message_ = *std::move(message);
  // Its bytes are taken as they come: a larger window saves the client round trips.
  if (length > kTrustedBytes && !streams()) {
    stream_->grow_window(std::min(length + kPrefixBytes, kLargeWindow));
  }
  return true;
}

bool Call::parse(std::span<const std::byte>& bytes) {
  if (have_message_ && received_ < message_size_) {
    if (received_ == message_.size()) {
      const std::size_t larger = std::min(message_size_, message_.size() * 4);
      if (!reserve(larger - message_.size())) return false;
      std::optional<BufferRef> grown = try_allocate(larger);
      if (!grown) {
        abort(Status::resource_exhausted(std::string(kOutOfMemory)));
        return false;
      }
      std::memcpy(grown->data(), message_.data(), received_);
      message_ = *std::move(grown);
    }
    const std::size_t n = std::min(bytes.size(), message_.size() - received_);
    std::memcpy(message_.data() + received_, bytes.data(), n);
    received_ += n;
    bytes = bytes.subspan(n);
    return true;
  }
  const std::size_t n = std::min(bytes.size(), kPrefixBytes - prefix_size_);
  std::memcpy(prefix_.data() + prefix_size_, bytes.data(), n);
  prefix_size_ += n;
  bytes = bytes.subspan(n);
  if (prefix_size_ < kPrefixBytes) return true;
  prefix_size_ = 0;
  return begin_message();
}

void Call::on_data(std::span<const std::byte> bytes) {
  if (state_ == State::kHandled && streams()) {
    // Held bytes come first, and there are none while there is credit.
    const std::size_t taken = credit_ == 0 || inflation_queued_ ? 0 : deliver(bytes);
    if (state_ == State::kHandled && taken < bytes.size()) hold(bytes.subspan(taken));
    return;
  }
  while (!bytes.empty() && state_ == State::kReceiving) {
    if (!parse(bytes)) return;
  }
}

void Call::on_end() {
  if (state_ == State::kHandled && streams()) {
    half_closed_ = true;
    return deliver_held();
  }
  if (state_ != State::kReceiving) return;
  if (prefix_size_ != 0 || (have_message_ && received_ != message_size_)) {
    return fail(Status::internal("the request ended in the middle of a message"));
  }
  if (!have_message_) return fail(Status::internal("a unary call without a request message"));
  if (stream_->may_begin()) return begin();
  state_ = State::kWaiting;
  stream_->message_complete();
}

void Call::begin() {
  state_ = State::kInflating;
  if (!compressed_ || inflate()) hand_over();
}

void Call::hand_over() {
  BufferRef message = std::move(message_);
  if (streams()) {
    have_message_ = false;
    --credit_;
    delivered_ += message.size();
    stream_->message_complete();
    return method_->handler->on_message(*this, std::move(message));
  }
  state_ = State::kHandled;
  stream_->message_complete();
  method_->handler->on_unary(*this, std::move(message));
}

std::size_t Call::deliver(std::span<const std::byte> bytes) {
  const std::size_t offered = bytes.size();
  delivering_ = true;
  while (credit_ != 0 && !bytes.empty() && state_ == State::kHandled) {
    if (!parse(bytes) || !message_complete()) continue;
    if (compressed_ && !inflate()) break;
    hand_over();
  }
  delivering_ = false;
  const std::size_t taken = offered - bytes.size();
  if (state_ == State::kHandled) stream_->consume(taken);
  return taken;
}

void Call::hold(std::span<const std::byte> bytes) {
  if (!reserve(bytes.size())) return;
  if (held_offset_ > held_.size() / 2) {
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(held_offset_));
    held_offset_ = 0;
  }
  held_.insert(held_.end(), bytes.begin(), bytes.end());
}

void Call::deliver_held() {
  if (delivering_ || inflation_queued_) return;  // who delivers goes on with the new credit
  if (credit_ != 0 && held_offset_ < held_.size()) {
    const std::size_t taken = deliver(std::span<const std::byte>(held_).subspan(held_offset_));
    if (state_ != State::kHandled) return;
    held_offset_ += taken;
    give_back(taken);
    if (held_offset_ == held_.size()) {
      held_ = {};
      held_offset_ = 0;
    }
  }
  if (!half_closed_ || held_offset_ < held_.size()) return;
  if (prefix_size_ != 0 || have_message_) {
    return abort(Status::internal("the request ended in the middle of a message"));
  }
  if (std::exchange(end_told_, true)) return;
  method_->handler->on_half_close(*this);
}

void Call::request_messages(std::size_t count) {
  if (state_ != State::kHandled) return;
  if (credit_ == 0) stream_->restart_body_clock();
  credit_ += std::min(count, SIZE_MAX - credit_);
  deliver_held();
}

void Call::release(std::size_t bytes) {
  delivered_ -= std::min(bytes, delivered_);
  if (inflated_ != 0) give_back_inflated(bytes);
  give_back(bytes);
}

void Call::give_back(std::size_t bytes) {
  bytes = std::min(bytes, charged_);
  charged_ -= bytes;
  set_->budget_.give(bytes);
  stream_->discharge(bytes);
  if (!set_->parked_.empty()) set_->unpark();
}

std::size_t Call::whole_bytes() const {
  if (state_ == State::kFinished || state_ == State::kReceiving) return 0;
  if (!streams()) return charged_;
  return delivered_ + (inflation_queued_ ? message_.size() + inflated_ : 0);
}

Encoding Call::set_compression(Encoding encoding) {
  if (!headers_sent_) {
    response_encoding_ =
        accepts_encoding(accept_encoding_, encoding) ? encoding : Encoding::kIdentity;
  }
  return response_encoding_;
}

Status Call::pack(BufferRef& head, std::vector<BodyPiece>& rest) const {
  std::size_t size = head.size() - kPrefixBytes;
  for (const BodyPiece& piece : rest) size += piece.bytes.size();
  // The prefix has 32 bits; clients stop at 2^31-1 (kserve: "exceeds gRPC's byte size limit").
  constexpr std::size_t kMaxMessage = 0x7fffffff;
  if (size > kMaxMessage) {
    rest.clear();
    return Status::invalid_argument("Response has byte size " + std::to_string(size) +
                                    " which exceeds gRPC's byte size limit " +
                                    std::to_string(kMaxMessage) + ".");
  }
  bool compressed = false;
  if (response_encoding_ != Encoding::kIdentity && compress_messages_ && size != 0) {
    std::optional<BufferRef> smaller =
        compress_message(response_encoding_, head.span().subspan(kPrefixBytes), rest, kPrefixBytes);
    if (smaller) {
      compressed = true;
      head = *std::move(smaller);
      rest.clear();
      size = head.size() - kPrefixBytes;
    }
  }
  std::byte* prefix = head.data();
  prefix[0] = std::byte{compressed};
  for (std::size_t i = 0; i < 4; ++i) {
    prefix[1 + i] = static_cast<std::byte>(size >> (8 * (3 - i)) & 0xff);
  }
  return {};
}

void Call::queue(BufferRef head, std::vector<BodyPiece>& rest) {
  const std::span<const std::byte> bytes = head.span();
  stream_->send_body({std::move(head), bytes});
  for (BodyPiece& piece : rest) stream_->send_body(std::move(piece));
  rest.clear();
}

void Call::send_headers(const Metadata* initial) {
  headers_sent_ = true;
  if (initial == nullptr && response_encoding_ == Encoding::kIdentity) {
    static constexpr std::array<HeaderField, 3> kHeaders = {kStatus200, kContentType,
                                                            kAcceptEncodingField};
    return stream_->send_headers(kHeaders);
  }
  std::vector<HeaderField> headers = {kStatus200, kContentType, kAcceptEncodingField};
  if (response_encoding_ != Encoding::kIdentity) {
    headers.push_back({"grpc-encoding", name_of(response_encoding_), true});
  }
  append(headers, initial);
  stream_->send_headers(headers);
}

bool Call::send_message(BufferRef head, std::vector<BodyPiece>& rest) {
  const Status packed = pack(head, rest);
  if (!packed.ok()) {
    abort(packed);
    return false;
  }
  if (!headers_sent_) send_headers();
  queue(std::move(head), rest);
  return true;
}

void Call::send_ok_trailers(const Metadata* trailing) {
  if (trailing == nullptr) {
    static constexpr std::array<HeaderField, 1> kTrailers = {kGrpcOk};
    return stream_->send_trailers(kTrailers);
  }
  std::vector<HeaderField> trailers = {kGrpcOk};
  append(trailers, trailing);
  stream_->send_trailers(trailers);
}

void Call::respond(BufferRef head, std::vector<BodyPiece>& rest, const Metadata* initial,
                   const Metadata* trailing) {
  const Status packed = pack(head, rest);
  if (!packed.ok()) return fail(packed);
  send_headers(initial);
  queue(std::move(head), rest);
  stream_->body_is_answer();
  send_ok_trailers(trailing);
  finished(StatusCode::kOk);
}

void Call::finish(const Status& status, const Metadata* trailing) {
  if (!status.ok()) return fail(status, trailing);
  if (!headers_sent_) send_headers();
  send_ok_trailers(trailing);
  finished(StatusCode::kOk);
}

void Call::fail(const Status& status, const Metadata* trailing) {
  const std::string message = grpc_message(status.message());
  std::vector<HeaderField> headers;
  headers.reserve(8);
  if (!headers_sent_) headers = {kStatus200, kContentType, kAcceptEncodingField};
  headers.push_back({"grpc-status", code_text(status.code()), true});
  if (!message.empty()) headers.push_back({"grpc-message", message});
  std::string pushback;
  if (const auto after = status.pushback()) {
    pushback = std::to_string(after->count());
    headers.push_back({"grpc-retry-pushback-ms", pushback});
  }
  append(headers, trailing);
  if (headers_sent_) {
    stream_->send_trailers(headers);
  } else {
    stream_->send_headers_only(headers);
  }
  finished(status.code());
}

void Call::abort(const Status& status) {
  if (state_ == State::kHandled) method_->handler->on_cancel(*this);
  fail(status);
}

void Call::finished(StatusCode code) {
  state_ = State::kFinished;
  ++generation_;
  set_->timers_.cancel(timer_);
  if (code != StatusCode::kOk && glitches_ != 0) stream_->count_glitches(glitches_);
  inflation_.reset();  // before the message that it reads
  unqueue();
  message_.reset();
  held_ = {};
  delivered_ = 0;
  if (inflated_ != 0) give_back_inflated(inflated_);
  give_back(charged_);
  set_->counters_.finished.add();
  set_->counters_.finished_by_code[static_cast<std::size_t>(code)].add();
  set_->active_.subtract();
}

void Call::on_deadline() {
  const Status status = Status::deadline_exceeded("Deadline Exceeded");
  if (stream_->unsent() == 0) return abort(status);
  // The status would wait behind a body that the client may never take.
  if (state_ == State::kHandled) method_->handler->on_cancel(*this);
  stream_->drop_body();
  stream_->reset(Http2Error::kCancel);
  finished(status.code());
}

void Call::on_writable() {
  if (state_ == State::kWaiting) return begin();
  if (state_ == State::kHandled) method_->handler->on_writable(*this);
}

void Call::on_closed(Http2Error) {
  if (state_ == State::kHandled) method_->handler->on_cancel(*this);
  if (state_ != State::kFinished) finished(StatusCode::kCancelled);
  stream_ = nullptr;
  set_->recycle(*this);
}

CallSet::CallSet(const MethodTable& methods, ReceiveBudget& budget, TimerWheel& timers,
                 std::function<TimePoint()> now)
    : methods_(methods), budget_(budget), timers_(timers), now_(std::move(now)) {}

CallSet::~CallSet() = default;

StreamHandler* CallSet::open(Stream& stream) {
  if (free_.empty()) {
    auto call = std::make_unique<Call>();
    call->set_ = this;
    call->index_ = static_cast<uint32_t>(calls_.size());
    call->timer_.owner = call.get();
    call->timer_.on_fire = [](TimerWheel::Timer& timer) {
      static_cast<Call*>(timer.owner)->on_deadline();
    };
    calls_.push_back(std::move(call));
    free_.push_back(calls_.back()->index_);
  }
  Call& call = *calls_[free_.back()];
  free_.pop_back();
  call.open(stream);
  active_.add();
  counters_.started.add();
  return &call;
}

Call* CallSet::find(uint64_t id) {
  Call* call = find_any(id);
  return call != nullptr && call->state_ == Call::State::kHandled ? call : nullptr;
}

Call* CallSet::find_any(uint64_t id) {
  const auto index = static_cast<std::size_t>(id & 0xffffffff);
  if (index >= calls_.size()) return nullptr;
  Call& call = *calls_[index];
  return call.id() == id && call.state_ != Call::State::kFinished ? &call : nullptr;
}

void CallSet::fail_all(const Status& status) {
  for (const std::unique_ptr<Call>& call : calls_) {
    if (call->state_ != Call::State::kFinished) call->abort(status);
  }
}

void CallSet::recycle(Call& call) { free_.push_back(call.index_); }

}  // namespace headrace
