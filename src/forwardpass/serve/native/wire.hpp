/* Text in and out for the native front: the head of an HTTP/1.1 request, the JSON of an inference, and its answer.
 *
 * Nothing here knows Python, allocates without a bound or decides what an error is. Each function understands the form
 * that nearly every client sends, exactly as the reference in Python does, and says "not mine" to everything else:
 * what is unusual, doubtful or wrong is the reference's business.
 */
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <strings.h>
#include <system_error>
#include <vector>

namespace wire {

constexpr int64_t NONE = -1;

enum class Verdict { INCOMPLETE, NOT_MINE, FINE };

struct Text {
    const char *at = nullptr;
    size_t size = 0;

    bool is(const char *word) const { return size == std::strlen(word) && strncasecmp(at, word, size) == 0; }
    bool is_exactly(const std::string &word) const {
        return size == word.size() && std::memcmp(at, word.data(), size) == 0;
    }
    bool contains(const char *word) const {
        size_t length = std::strlen(word);
        for (size_t start = 0; start + length <= size; start++)
            if (strncasecmp(at + start, word, length) == 0) return true;
        return false;
    }
};

struct Header {
    Text name, value;
};

struct Head {
    Text method, target;
    std::vector<Header> headers;
    size_t num_bytes = 0;
    int64_t content_length = 0;
    int64_t json_length = NONE;  /* Inference-Header-Content-Length */
    int64_t timeout_ms = NONE;   /* X-Request-Timeout-Ms */
    Header credential;           /* the one that names an API key, if there is just one */
    bool is_plain = true;        /* the headers above are well-formed, and no other one changes what the body means */
};

inline bool is_token(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

inline bool is_digits(const Text &text, size_t max_digits) {
    if (text.size == 0 || text.size > max_digits) return false;
    for (size_t i = 0; i < text.size; i++)
        if (text.at[i] < '0' || text.at[i] > '9') return false;
    return true;
}

inline int64_t number(const Text &text) {
    int64_t value = 0;
    for (size_t i = 0; i < text.size; i++) value = 10 * value + (text.at[i] - '0');
    return value;
}

/* Take note of a header; false if the connection needs the reference. */
inline bool note_header(Head &head, const Header &header, bool &has_length) {
    const Text &name = header.name, &value = header.value;
    if (name.is("content-length")) {
        if (has_length || !is_digits(value, 15)) return false;
        has_length = true;
        head.content_length = number(value);
    } else if (name.is("connection") || name.is("proxy-connection")) {
        return value.is("keep-alive");
    } else if (name.is("transfer-encoding") || name.is("expect") || name.is("upgrade")) {
        return false;
    } else if (name.is("accept")) {
        return !value.contains("event-stream");  /* its answer comes piece by piece */
    } else if (name.is("authorization") || name.is("x-api-key")) {
        if (head.credential.name.size) head.is_plain = false;
        head.credential = header;
    } else if (name.is("content-encoding")) {
        head.is_plain = false;
    } else if (name.is("inference-header-content-length")) {
        if (head.json_length != NONE || !is_digits(value, 9)) head.is_plain = false;
        else head.json_length = number(value);
    } else if (name.is("x-request-timeout-ms")) {
        if (head.timeout_ms != NONE || !is_digits(value, 9) || number(value) == 0) head.is_plain = false;
        else head.timeout_ms = number(value);
    }
    return true;
}

inline Verdict parse_header_line(Head &head, const char *line, const char *end, bool &has_length) {
    const char *colon = line;
    while (colon < end && is_token(static_cast<unsigned char>(*colon))) colon++;
    if (colon == line || colon == end || *colon != ':') return Verdict::NOT_MINE;
    const char *from = colon + 1, *to = end;
    while (from < to && (*from == ' ' || *from == '\t')) from++;
    while (to > from && (to[-1] == ' ' || to[-1] == '\t')) to--;
    for (const char *c = from; c < to; c++) {
        auto value = static_cast<unsigned char>(*c);
        if ((value < 0x20 && value != '\t') || value == 0x7f) return Verdict::NOT_MINE;
    }
    Header header{{line, static_cast<size_t>(colon - line)}, {from, static_cast<size_t>(to - from)}};
    if (!note_header(head, header, has_length)) return Verdict::NOT_MINE;
    head.headers.push_back(header);
    return Verdict::FINE;
}

constexpr const char *METHODS[] = {"GET ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS "};

/* Whether this is the beginning of a request, as far as it has come: TLS, for one, is not, and has no end to wait for. */
inline bool begins_like_request(const char *data, size_t size) {
    for (const char *method : METHODS)
        if (std::memcmp(data, method, std::min(size, std::strlen(method))) == 0) return true;
    return false;
}

inline Verdict parse_head(const char *data, size_t size, size_t max_bytes, Head &head) {
    head = Head();
    if (!begins_like_request(data, size)) return Verdict::NOT_MINE;
    const void *found = memmem(data, size, "\r\n\r\n", 4);
    if (found == nullptr) return size > max_bytes ? Verdict::NOT_MINE : Verdict::INCOMPLETE;
    const char *end = static_cast<const char *>(found);
    head.num_bytes = static_cast<size_t>(end - data) + 4;
    if (head.num_bytes > max_bytes) return Verdict::NOT_MINE;
    end += 2;  /* the last header's own line break */
    const char *line_end = static_cast<const char *>(std::memchr(data, '\r', static_cast<size_t>(end - data)));
    if (line_end == nullptr) return Verdict::NOT_MINE;
    const char *c = static_cast<const char *>(std::memchr(data, ' ', head.num_bytes));
    head.method = {data, static_cast<size_t>(c - data)};
    const char *target = ++c;
    while (c < line_end && *c > 0x20 && *c < 0x7f) c++;
    head.target = {target, static_cast<size_t>(c - target)};
    if (head.target.size == 0 || *target != '/') return Verdict::NOT_MINE;
    if (line_end - c != 9 || std::memcmp(c, " HTTP/1.1", 9) != 0) return Verdict::NOT_MINE;
    bool has_length = false;
    for (const char *line = line_end + 2; line < end;) {
        if (line[-1] != '\n') return Verdict::NOT_MINE;
        const char *stop = static_cast<const char *>(std::memchr(line, '\r', static_cast<size_t>(end - line)));
        if (stop == nullptr || stop[1] != '\n') return Verdict::NOT_MINE;
        if (parse_header_line(head, line, stop, has_length) != Verdict::FINE) return Verdict::NOT_MINE;
        line = stop + 2;
    }
    if (line_end[1] != '\n') return Verdict::NOT_MINE;
    return Verdict::FINE;
}

/* --- what a request holds */

enum class Kind { FLOAT32, FLOAT64, INT32, INT64 };

inline size_t item_bytes(Kind kind) { return kind == Kind::FLOAT32 || kind == Kind::INT32 ? 4 : 8; }

struct Input {
    std::string name, datatype;
    Kind kind = Kind::FLOAT32;
    std::vector<int64_t> dims;  /* behind the batch axis */
    int64_t row_elements = 1;
    int64_t max_rows = 1;
};

struct Infer {
    int64_t num_rows = 0;
    Text id;  /* as it stands in the JSON, without its quotes */
    bool has_id = false;
    bool is_binary = false;  /* the answer is to be */
    int64_t timeout_us = NONE;
    const char *data = nullptr;
    size_t data_bytes = 0;
};

class Reader {
  public:
    Reader(const char *at, size_t size, const Input &input, std::vector<char> &data)
        : at_(at), end_(at + size), input_(input), data_(data) {}

    bool read(Infer &infer) {
        enum { INPUTS = 1, ID = 2, PARAMETERS = 4 };
        int seen = 0;
        if (!take('{') || take('}')) return false;
        do {
            Text key;
            if (!string(key) || !take(':')) return false;
            int what = key.is_exactly("inputs") ? INPUTS : key.is_exactly("id") ? ID
                       : key.is_exactly("parameters") ? PARAMETERS : 0;
            if (what == 0 || (seen & what)) return false;
            seen |= what;
            if (what == INPUTS && !inputs()) return false;
            if (what == ID) {
                Text id;
                if (!string(id)) return false;
                infer.id = id;
                infer.has_id = true;
            }
            if (what == PARAMETERS && !parameters(infer)) return false;
        } while (take(','));
        if (!take('}') || !(seen & INPUTS)) return false;
        skip();
        return at_ == end_ && finish(infer);
    }

    int64_t binary_size() const { return binary_size_; }

  private:
    void skip() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) at_++;
    }

    bool take(char wanted) {
        skip();
        if (at_ == end_ || *at_ != wanted) return false;
        at_++;
        return true;
    }

    bool string(Text &text) {
        if (!take('"')) return false;
        text.at = at_;
        while (at_ < end_ && *at_ != '"') {
            if (*at_ < 0x20 || *at_ > 0x7e || *at_ == '\\') return false;
            at_++;
        }
        if (at_ == end_) return false;
        text.size = static_cast<size_t>(at_ - text.at);
        at_++;
        return true;
    }

    bool integer(int64_t &value) {
        skip();
        const char *from = at_;
        bool is_negative = at_ < end_ && *at_ == '-';
        if (is_negative) at_++;
        const char *digits = at_;
        uint64_t sum = 0;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9') sum = 10 * sum + static_cast<uint64_t>(*at_++ - '0');
        size_t count = static_cast<size_t>(at_ - digits);
        if (count == 0 || count > 18 || (count > 1 && *digits == '0')) return false;
        if (at_ < end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) return false;
        value = is_negative ? -static_cast<int64_t>(sum) : static_cast<int64_t>(sum);
        return from != at_;
    }

    /* A number of JSON as the nearest double; what has few digits is exact in one multiplication or division. */
    bool real(double &value) {
        static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                        1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
        skip();
        const char *from = at_;
        bool is_negative = at_ < end_ && *at_ == '-';
        if (is_negative) at_++;
        const char *digits = at_;
        uint64_t mantissa = 0;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9') mantissa = 10 * mantissa + static_cast<uint64_t>(*at_++ - '0');
        int64_t count = at_ - digits, scale = 0;
        if (count == 0 || (count > 1 && *digits == '0')) return false;
        bool is_whole = true;
        if (at_ < end_ && *at_ == '.') {
            is_whole = false;
            const char *fraction = ++at_;
            while (at_ < end_ && *at_ >= '0' && *at_ <= '9')
                mantissa = 10 * mantissa + static_cast<uint64_t>(*at_++ - '0');
            if (at_ == fraction) return false;
            scale = fraction - at_;
            count += at_ - fraction;
        }
        if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
            is_whole = false;
            at_++;
            bool is_small = at_ < end_ && *at_ == '-';
            if (at_ < end_ && (*at_ == '-' || *at_ == '+')) at_++;
            const char *exponent = at_;
            int64_t size = 0;
            while (at_ < end_ && *at_ >= '0' && *at_ <= '9' && size < 100000) size = 10 * size + (*at_++ - '0');
            if (at_ == exponent || size >= 100000) return false;
            scale += is_small ? -size : size;
        }
        if (is_whole && is_negative && mantissa == 0) return false;  /* the integer -0 is 0 for some, -0.0 for others */
        if (count <= 15 && scale >= -22 && scale <= 22) {
            value = scale < 0 ? static_cast<double>(mantissa) / powers[-scale]
                              : static_cast<double>(mantissa) * powers[scale];
            if (is_negative) value = -value;
            return true;
        }
        auto [stop, error] = std::from_chars(from, at_, value);
        return error == std::errc() && stop == at_;
    }

    bool inputs() {
        return take('[') && input() && take(']');
    }

    bool input() {
        enum { NAME = 1, SHAPE = 2, DATATYPE = 4, DATA = 8, PARAMETERS = 16 };
        int seen = 0;
        if (!take('{')) return false;
        do {
            Text key;
            if (!string(key) || !take(':')) return false;
            int what = key.is_exactly("name") ? NAME : key.is_exactly("shape") ? SHAPE
                       : key.is_exactly("datatype") ? DATATYPE : key.is_exactly("data") ? DATA
                       : key.is_exactly("parameters") ? PARAMETERS : 0;
            if (what == 0 || (seen & what)) return false;
            seen |= what;
            Text word;
            if (what == NAME && !(string(word) && word.is_exactly(input_.name))) return false;
            if (what == DATATYPE && !(string(word) && word.is_exactly(input_.datatype))) return false;
            if (what == SHAPE && !shape()) return false;
            if (what == DATA && !list()) return false;
            if (what == PARAMETERS && !size("binary_data_size", binary_size_)) return false;
        } while (take(','));
        int wanted = seen & (NAME | SHAPE | DATATYPE);
        bool has_one = ((seen & DATA) != 0) != ((seen & PARAMETERS) != 0);
        return take('}') && wanted == (NAME | SHAPE | DATATYPE) && has_one;
    }

    bool shape() {
        int64_t size = 0;
        if (!take('[') || !integer(num_rows_)) return false;
        for (int64_t dim : input_.dims)
            if (!take(',') || !integer(size) || size != dim) return false;
        return take(']') && num_rows_ >= 1 && num_rows_ <= input_.max_rows;
    }

    bool list() {
        if (!take('[')) return false;
        size_t most = static_cast<size_t>(input_.max_rows * input_.row_elements) * item_bytes(input_.kind);
        data_.clear();
        do {
            if (data_.size() >= most || !element()) return false;
        } while (take(','));
        return take(']');
    }

    template <typename T> bool append(T value) {
        size_t size = data_.size();
        data_.resize(size + sizeof value);
        std::memcpy(data_.data() + size, &value, sizeof value);
        return true;
    }

    bool element() {
        double value = 0;
        int64_t whole = 0;
        switch (input_.kind) {
        case Kind::FLOAT32:
            return real(value) && std::isfinite(static_cast<float>(value)) && append(static_cast<float>(value));
        case Kind::FLOAT64:
            return real(value) && std::isfinite(value) && append(value);
        case Kind::INT32:
            return integer(whole) && whole >= INT32_MIN && whole <= INT32_MAX && append(static_cast<int32_t>(whole));
        case Kind::INT64:
            return integer(whole) && append(whole);
        }
        return false;
    }

    bool parameters(Infer &infer) {
        enum { BINARY = 1, TIMEOUT = 2 };
        int seen = 0;
        if (!take('{')) return false;
        do {
            Text key;
            if (!string(key) || !take(':')) return false;
            int what = key.is_exactly("binary_data_output") ? BINARY : key.is_exactly("timeout") ? TIMEOUT : 0;
            if (what == 0 || (seen & what)) return false;
            seen |= what;
            if (what == BINARY && !flag(infer.is_binary)) return false;
            if (what == TIMEOUT && !(integer(infer.timeout_us) && infer.timeout_us > 0)) return false;
        } while (take(','));
        return take('}');
    }

    bool flag(bool &value) {
        skip();
        size_t left = static_cast<size_t>(end_ - at_);
        if (left >= 4 && std::memcmp(at_, "true", 4) == 0) {
            value = true;
            at_ += 4;
        } else if (left >= 5 && std::memcmp(at_, "false", 5) == 0) {
            value = false;
            at_ += 5;
        } else {
            return false;
        }
        return true;
    }

    bool size(const char *name, int64_t &value) {
        Text key;
        return take('{') && string(key) && key.is_exactly(name) && take(':') && integer(value) && value >= 0 && take('}');
    }

    bool finish(Infer &infer) {
        infer.num_rows = num_rows_;
        size_t wanted = static_cast<size_t>(num_rows_ * input_.row_elements) * item_bytes(input_.kind);
        infer.data_bytes = wanted;
        if (binary_size_ != NONE) return static_cast<size_t>(binary_size_) == wanted;
        infer.data = data_.data();
        return data_.size() == wanted;
    }

    const char *at_, *end_;
    const Input &input_;
    std::vector<char> &data_;
    int64_t num_rows_ = 0;
    int64_t binary_size_ = NONE;
};

/* Understand a body. `json_length` is NONE where all of it is JSON; 0, a raw row, is the reference's business. */
inline bool read_infer(const char *body, size_t size, int64_t json_length, const Input &input, std::vector<char> &data,
                       Infer &infer) {
    infer = Infer();
    if (json_length == 0 || json_length > static_cast<int64_t>(size)) return false;
    size_t json_size = json_length == NONE ? size : static_cast<size_t>(json_length);
    Reader reader(body, json_size, input, data);
    if (!reader.read(infer)) return false;
    if (reader.binary_size() == NONE) return json_size == size;
    infer.data = body + json_size;
    return size - json_size == infer.data_bytes;
}

/* --- the answer */

struct Output {
    std::string before_rows, after_rows; /* the JSON of a tensor, up to and from the number of rows in its shape */
    Kind kind = Kind::FLOAT32;
    int64_t row_elements = 1;
};

template <typename T> inline void append_whole(std::string &text, T value) {
    char digits[24];
    auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
    text.append(digits, static_cast<size_t>(end - digits));
}

/* The shortest text that reads as the same double; what is not finite is null, as JSON has no word for it. */
inline void append_real(std::string &text, double value) {
    if (!std::isfinite(value)) {
        text += "null";
        return;
    }
    char digits[40];
    auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
    size_t size = static_cast<size_t>(end - digits);
    text.append(digits, size);
    if (std::memchr(digits, '.', size) == nullptr && std::memchr(digits, 'e', size) == nullptr) text += ".0";
}

template <typename T> inline T item(const char *data, int64_t at) {
    T value;
    std::memcpy(&value, data + static_cast<size_t>(at) * sizeof value, sizeof value);
    return value;
}

inline void append_list(std::string &text, const char *data, Kind kind, int64_t count) {
    for (int64_t at = 0; at < count; at++) {
        if (at) text += ',';
        switch (kind) {
        case Kind::FLOAT32: append_real(text, item<float>(data, at)); break;
        case Kind::FLOAT64: append_real(text, item<double>(data, at)); break;
        case Kind::INT32: append_whole(text, item<int32_t>(data, at)); break;
        case Kind::INT64: append_whole(text, item<int64_t>(data, at)); break;
        }
    }
}

/* Write the whole answer; `before` is the JSON up to the first output, `rows[i]` where the request's rows of output i are. */
inline void write_answer(std::string &text, const std::string &before, const std::vector<Output> &outputs,
                         const std::vector<const char *> &rows, const Infer &infer, bool closes) {
    static thread_local std::string json, tail;
    json.assign(before);
    tail.clear();
    for (size_t i = 0; i < outputs.size(); i++) {
        const Output &output = outputs[i];
        int64_t count = infer.num_rows * output.row_elements;
        if (i) json += ',';
        json += output.before_rows;
        append_whole(json, infer.num_rows);
        json += output.after_rows;
        if (infer.is_binary) {
            size_t size = static_cast<size_t>(count) * item_bytes(output.kind);
            json += ",\"parameters\":{\"binary_data_size\":";
            append_whole(json, size);
            json += "}}";
            tail.append(rows[i], size);
        } else {
            json += ",\"data\":[";
            append_list(json, rows[i], output.kind, count);
            json += "]}";
        }
    }
    json += ']';
    if (infer.has_id) {
        json += ",\"id\":\"";
        json.append(infer.id.at, infer.id.size);
        json += '"';
    }
    json += '}';
    text.assign("HTTP/1.1 200 OK\r\ncontent-type: ");
    text += infer.is_binary ? "application/octet-stream" : "application/json";
    text += "\r\ncontent-length: ";
    append_whole(text, json.size() + tail.size());
    if (infer.is_binary) {
        text += "\r\ninference-header-content-length: ";
        append_whole(text, json.size());
    }
    if (closes) text += "\r\nconnection: close";
    text += "\r\n\r\n";
    text += json;
    text += tail;
}

}  // namespace wire
