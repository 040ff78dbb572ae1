// Strict JSON (RFC 8259) for the model's configuration, its manifest and its description. Nothing is built of it: a value is its own bytes
// within the text, and a member is looked for when it is asked for. `fault` must have accepted the text first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace json {

constexpr int DEEPEST = 64;
constexpr size_t MOST_MEMBERS = 1024;  // of one object: they are compared with each other

struct Value {
    const char *at = nullptr;  // nullptr: there is none
    const char *end = nullptr;
    explicit operator bool() const { return at != nullptr; }
};

inline bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

inline int hex_digit(char c) {
    return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// The code unit of the four digits after \u; -1 if they are none.
inline int code_unit(const char *at, const char *end) {
    if (end - at < 4) return -1;
    int unit = 0;
    for (int i = 0; i < 4; i++) {
        const int digit = hex_digit(at[i]);
        if (digit < 0) return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

// Reads the bytes of a string between its quotes, with its escapes resolved.
class Characters {
    const char *at_, *end_;
    unsigned char rest_[3] = {};
    int left_ = 0;

public:
    Characters(const char *at, const char *end) : at_(at), end_(end) {}

    // The next byte, 0 to 255; -1: the end; -2: no escape that JSON has, or half of a surrogate pair.
    int next() {
        if (left_) return rest_[--left_];
        if (at_ >= end_) return -1;
        const char c = *at_++;
        if (c != '\\') return static_cast<unsigned char>(c);
        if (at_ >= end_) return -2;
        switch (const char escape = *at_++) {
            case '"': case '\\': case '/': return escape;
            case 'b': return '\b';
            case 'f': return '\f';
            case 'n': return '\n';
            case 'r': return '\r';
            case 't': return '\t';
            case 'u': return unicode();
            default: return -2;
        }
    }

private:
    int unicode() {
        int code = code_unit(at_, end_);
        if (code < 0 || (code >= 0xdc00 && code < 0xe000)) return -2;
        at_ += 4;
        if (code >= 0xd800 && code < 0xdc00) {
            if (end_ - at_ < 6 || at_[0] != '\\' || at_[1] != 'u') return -2;
            const int low = code_unit(at_ + 2, end_);
            if (low < 0xdc00 || low >= 0xe000) return -2;
            at_ += 6;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        if (code < 0x80) return code;
        int following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        const int first = (following == 1 ? 0xc0 : following == 2 ? 0xe0 : 0xf0) | (code >> (6 * following));
        left_ = following;
        for (int i = 0; i < following; i++) rest_[i] = static_cast<unsigned char>(0x80 | ((code >> (6 * i)) & 0x3f));
        return first;
    }
};

inline bool same(Value one, Value other) {
    const size_t size = static_cast<size_t>(one.end - one.at), others = static_cast<size_t>(other.end - other.at);
    if (!memchr(one.at, '\\', size) && !memchr(other.at, '\\', others)) return size == others && !memcmp(one.at, other.at, size);
    Characters left(one.at, one.end), right(other.at, other.end);
    for (;;) {
        const int a = left.next(), b = right.next();
        if (a != b) return false;
        if (a < 0) return true;
    }
}

class Checker {
    const char *at_, *end_;
    Value *keys_ = nullptr;  // of all objects that are open
    size_t count_ = 0, room_ = 0;
    const char *fault_ = nullptr;

public:
    Checker(const char *text, size_t size) : at_(text), end_(text + size) {}
    ~Checker() { free(keys_); }
    Checker(const Checker &) = delete;
    Checker &operator=(const Checker &) = delete;

    const char *check() {
        if (value(0)) {
            space();
            if (at_ != end_) refuse("something follows its end");
        }
        return fault_;
    }

private:
    bool refuse(const char *reason) {
        if (!fault_) fault_ = reason;
        return false;
    }
    void space() {
        while (at_ < end_ && is_space(*at_)) at_++;
    }
    bool take(char c) {
        if (at_ >= end_ || *at_ != c) return false;
        at_++;
        return true;
    }
    bool word(const char *expected) {
        const size_t size = strlen(expected);
        if (static_cast<size_t>(end_ - at_) < size || memcmp(at_, expected, size)) return refuse("it is no JSON");
        at_ += size;
        return true;
    }
    bool digits() {
        if (at_ >= end_ || !is_digit(*at_)) return refuse("it has a number that is none");
        while (at_ < end_ && is_digit(*at_)) at_++;
        return true;
    }
    bool number() {
        take('-');
        if (at_ < end_ && *at_ == '0') {
            at_++;
        } else if (!digits()) {
            return false;
        }
        if (take('.') && !digits()) return false;
        if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
            at_++;
            if (!take('+')) take('-');
            return digits();
        }
        return true;
    }
    // The bytes of one character beyond ASCII; 0 if they are no UTF-8.
    int character() const {
        const auto *c = reinterpret_cast<const unsigned char *>(at_);
        const int size = c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3 : c[0] >= 0xf0 && c[0] < 0xf5 ? 4 : 0;
        if (!size || end_ - at_ < size) return 0;
        for (int i = 1; i < size; i++)
            if ((c[i] & 0xc0) != 0x80) return 0;
        const bool overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
        const bool beyond = (c[0] == 0xed && c[1] >= 0xa0) || (c[0] == 0xf4 && c[1] >= 0x90);  // surrogates, and what Unicode has not
        return overlong || beyond ? 0 : size;
    }
    bool string(Value *content) {
        if (!take('"')) return refuse("it is no JSON");
        const char *begin = at_;
        bool escapes = false;
        for (;;) {
            if (at_ >= end_) return refuse("it is cut off");
            const auto c = static_cast<unsigned char>(*at_);
            if (c == '"') break;
            if (c < 0x20) return refuse("it has a control character in a string");
            if (c == '\\') {
                escapes = true;
                at_ += end_ - at_ < 2 ? 1 : 2;
            } else if (c < 0x80) {
                at_++;
            } else if (const int size = character()) {
                at_ += size;
            } else {
                return refuse("it is no UTF-8");
            }
        }
        *content = {begin, at_++};
        if (escapes) {
            Characters characters(content->at, content->end);
            int c;
            while ((c = characters.next()) >= 0) {}
            if (c == -2) return refuse("it has an escape that JSON has not");
        }
        return true;
    }
    bool remember(Value key, size_t first) {
        for (size_t i = first; i < count_; i++)
            if (same(keys_[i], key)) return refuse("it has an object with two members of one name");
        if (count_ - first >= MOST_MEMBERS) return refuse("it has an object with more than 1024 members");
        if (count_ == room_) {
            const size_t room = room_ ? 2 * room_ : 64;
            auto *keys = static_cast<Value *>(realloc(static_cast<void *>(keys_), room * sizeof(Value)));
            if (!keys) return refuse("there is no memory to read it");
            keys_ = keys;
            room_ = room;
        }
        keys_[count_++] = key;
        return true;
    }
    bool members(int depth) {
        const size_t first = count_;
        space();
        if (take('}')) return true;
        do {
            space();
            Value key;
            if (!string(&key) || !remember(key, first)) return false;
            space();
            if (!take(':')) return refuse("it is no JSON");
            if (!value(depth)) return false;
            space();
        } while (take(','));
        count_ = first;
        return take('}') || refuse(at_ < end_ ? "it is no JSON" : "it is cut off");
    }
    bool elements(int depth) {
        space();
        if (take(']')) return true;
        do {
            if (!value(depth)) return false;
            space();
        } while (take(','));
        return take(']') || refuse(at_ < end_ ? "it is no JSON" : "it is cut off");
    }
    bool value(int depth) {
        space();
        if (at_ >= end_) return refuse("it is cut off");
        Value unused;
        switch (*at_) {
            case '{': case '[': {
                if (depth >= DEEPEST) return refuse("it is nested more than 64 deep");
                return *at_++ == '{' ? members(depth + 1) : elements(depth + 1);
            }
            case '"': return string(&unused);
            case 't': return word("true");
            case 'f': return word("false");
            case 'n': return word("null");
            default: return *at_ == '-' || is_digit(*at_) ? number() : refuse("it is no JSON");
        }
    }
};

// Why a text is no JSON that is read here; nullptr if it is.
inline const char *fault(const char *text, size_t size) { return Checker(text, size).check(); }

// The value at the beginning of a checked text, and nothing after it.
inline Value value_at(const char *at, const char *end) {
    while (at < end && is_space(*at)) at++;
    const char *begin = at;
    int depth = 0;
    for (bool quoted = false; at < end; at++) {
        if (quoted) {
            if (*at == '\\') at++;
            else if (*at == '"') quoted = false;
            if (!quoted && !depth) return {begin, at + 1};
        } else if (*at == '"') {
            quoted = true;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if (*at == '}' || *at == ']') {
            if (!depth) break;  // of the container that this value ends
            if (!--depth) return {begin, at + 1};
        } else if (!depth && (*at == ',' || *at == ':' || is_space(*at))) {
            break;
        }
    }
    return begin < at ? Value{begin, at < end ? at : end} : Value{};
}

inline Value value_of(const char *text, size_t size) { return value_at(text, text + size); }

inline bool is_string(Value value) { return value && *value.at == '"'; }
inline bool is_object(Value value) { return value && *value.at == '{'; }
inline bool is_array(Value value) { return value && *value.at == '['; }

// The value after `before` in an array or object, whose keys and values follow each other; the first for none. None after the last.
inline Value next(Value container, Value before) {
    const char *at = before ? before.end : container.at + 1;
    while (at < container.end && (is_space(*at) || *at == ',' || *at == ':')) at++;
    return value_at(at, container.end);
}

inline Value member(Value object, const char *name) {
    if (!is_object(object)) return {};
    const Value wanted{name, name + strlen(name)};
    for (Value key = next(object, {}); key;) {
        const Value value = next(object, key);
        if (same({key.at + 1, key.end - 1}, wanted)) return value;
        key = next(object, value);
    }
    return {};
}

inline size_t length(Value array) {
    size_t count = 0;
    if (is_array(array))
        for (Value element = next(array, {}); element; element = next(array, element)) count++;
    return count;
}

inline bool equals(Value value, const char *text) {
    return is_string(value) && same({value.at + 1, value.end - 1}, {text, text + strlen(text)});
}

// A whole number from 0, written as such or, as protobuf's JSON has those of 64 bits, in a string.
inline bool whole(Value value, uint64_t *number) {
    if (!value) return false;
    const bool quoted = is_string(value);
    const char *at = value.at + quoted, *end = value.end - quoted;
    if (at >= end || end - at > 18 || (*at == '0' && end - at > 1)) return false;
    uint64_t made = 0;
    for (; at < end; at++) {
        if (!is_digit(*at)) return false;
        made = made * 10 + static_cast<uint64_t>(*at - '0');
    }
    *number = made;
    return true;
}

// A string's text with a zero after it, at most `room` bytes in all. False for one that is longer, that has a zero itself, and for no string.
inline bool text(Value value, char *to, size_t room) {
    if (!is_string(value)) return false;
    Characters characters(value.at + 1, value.end - 1);
    size_t size = 0;
    for (int c; (c = characters.next()) != -1;) {
        if (c <= 0 || size + 1 >= room) return false;
        to[size++] = static_cast<char>(c);
    }
    to[size] = 0;
    return true;
}

}  // namespace json
