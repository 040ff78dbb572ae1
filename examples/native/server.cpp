// An HTTP server that classifies images with a library of `cnet-deploy export --native`, without Python: POST a PNG or PPM file to /classify.
//
//     cnet-deploy export model.safetensors --native -o model.so
//     g++ -std=c++17 -O2 -I "$(cnet-deploy include)" examples/native/server.cpp -o server -lpng -ldl -pthread
//     ./server ./model.so 8080
//     curl --data-binary @examples/images/cat.png http://127.0.0.1:8080/classify
//
// Only dlopen knows the model, so the program is built once and serves any of them, or several. It needs libpng (Debian: libpng-dev).
// Each worker has a handle of its own and answers one request at a time. Requests are bounded: their size, the pixels, and the time that
// they take. It listens on this machine alone; put a proxy before it that speaks TLS and counts requests.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <poll.h>
#include <png.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cnet.h"

namespace {

constexpr size_t most_header = 16 << 10, most_body = 16 << 20;  // bytes
constexpr size_t most_side = 16384, most_pixels = 32 << 20;
constexpr int workers = 4, top = 5;
#ifndef SECONDS
#define SECONDS 10
#endif
constexpr std::chrono::seconds most_time{SECONDS};  // for a request to come in

// ---- the model ---------------------------------------------------------------------------------------------------------------------

struct Library {
    decltype(&cnet_version) version;
    decltype(&cnet_describe) describe;
    decltype(&cnet_shape) shape;
    decltype(&cnet_class_name) class_name;
    decltype(&cnet_prepare) prepare;
    decltype(&cnet_create) create;
    decltype(&cnet_run) run;
    size_t channels, height, width, classes;
};

[[noreturn]] void fail(const std::string &why) {
    std::fprintf(stderr, "server: %s\n", why.c_str());
    std::exit(1);
}

template <typename Function>
void take(void *library, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) fail(std::string("the library has no ") + name + "; export the model again");
}

void require(cnet_status status) {
    if (status != CNET_OK) fail(cnet_message(status));
}

// RTLD_LOCAL: functions of all models have the same names, and those of another one must not answer for them.
Library open_library(const char *path) {
    void *opened = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!opened) fail(dlerror());
    Library l{};
    uint32_t version = 0;
    take(opened, "cnet_version", l.version);
    require(l.version(&version));
    if (version < 2) fail("the library is of version 1 of cnet.h, which prepares no images; export the model again");
    take(opened, "cnet_describe", l.describe);
    take(opened, "cnet_shape", l.shape);
    take(opened, "cnet_class_name", l.class_name);
    take(opened, "cnet_prepare", l.prepare);
    take(opened, "cnet_create", l.create);
    take(opened, "cnet_run", l.run);
    require(l.shape(&l.channels, &l.height, &l.width, &l.classes));
    return l;
}

// ---- images ------------------------------------------------------------------------------------------------------------------------

struct Image {
    size_t height = 0, width = 0, channels = 0;
    std::vector<unsigned char> pixels;
};

struct Bytes {
    const unsigned char *at;
    size_t left;
};

void read_png(png_structp png, png_bytep to, size_t count) {
    Bytes &bytes = *static_cast<Bytes *>(png_get_io_ptr(png));
    if (count > bytes.left) png_error(png, "ends too early");
    std::memcpy(to, bytes.at, count);
    bytes.at += count;
    bytes.left -= count;
}

void be_silent(png_structp, png_const_charp) {}
void give_up(png_structp png, png_const_charp) { png_longjmp(png, 1); }

// 16-bit grey as `cnet-deploy run` takes it: to 8 bits, rounded; kept where all values fit 8 bits.
void narrow_grey(Image &image, const std::vector<unsigned char> &wide) {
    unsigned most = 0;
    for (size_t i = 0; i < wide.size(); i += 2) most = std::max(most, wide[i] * 256u + wide[i + 1]);
    for (size_t i = 0; i < wide.size(); i += 2) {
        const unsigned value = wide[i] * 256u + wide[i + 1];
        image.pixels[i / 2] = static_cast<unsigned char>(most > 255 ? (value * 255u + 32767u) / 65535u : value);
    }
}

// setjmp: nothing with a destructor may begin between it and the calls that may jump, so the buffers are the caller's.
bool decode_png(const std::string &body, Image &image, std::vector<unsigned char> &buffer, std::vector<png_bytep> &rows) {
    Bytes bytes{reinterpret_cast<const unsigned char *>(body.data()), body.size()};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, give_up, be_silent);
    if (!png) throw std::bad_alloc();
    png_infop info = png_create_info_struct(png);
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_read_struct(&png, &info, nullptr);
        return false;
    }
    png_set_read_fn(png, &bytes, read_png);
    png_set_user_limits(png, most_side, most_side);
    png_set_chunk_cache_max(png, 64);
    png_set_chunk_malloc_max(png, 1 << 20);
    png_read_info(png, info);
    image.height = png_get_image_height(png, info);
    image.width = png_get_image_width(png, info);
    if (image.height * image.width > most_pixels) png_error(png, "too large");
    const int kind = png_get_color_type(png, info);
    const bool deep_grey = kind == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16;
    if (!deep_grey) {
        png_set_expand(png);    // palettes, few bits, transparency
        png_set_strip_16(png);  // the high byte, as Pillow takes it
        if (kind == PNG_COLOR_TYPE_GRAY_ALPHA || (kind == PNG_COLOR_TYPE_GRAY && png_get_valid(png, info, PNG_INFO_tRNS)))
            png_set_gray_to_rgb(png);
    }
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    const size_t row = png_get_rowbytes(png, info);
    image.channels = png_get_channels(png, info);
    try {
        buffer.resize(row * image.height);
        rows.resize(image.height);
        image.pixels.resize(image.height * image.width * image.channels);
    } catch (const std::bad_alloc &) {
        png_destroy_read_struct(&png, &info, nullptr);
        throw;
    }
    for (size_t y = 0; y < image.height; y++) rows[y] = buffer.data() + y * row;
    png_read_image(png, rows.data());
    png_read_end(png, nullptr);
    png_destroy_read_struct(&png, &info, nullptr);
    if (deep_grey) narrow_grey(image, buffer);
    else image.pixels.swap(buffer);
    return true;
}

bool decode_ppm(const std::string &body, Image &image) {
    size_t at = 2, numbers[3];
    for (size_t &number : numbers) {
        while (at < body.size() && (std::isspace((unsigned char)body[at]) || body[at] == '#')) {
            if (body[at] == '#') at = std::min(body.size(), body.find('\n', at));
            else at++;
        }
        number = 0;
        const size_t from = at;
        for (; at < body.size() && body[at] >= '0' && body[at] <= '9' && at - from < 6; at++) number = 10 * number + size_t(body[at] - '0');
        if (at == from) return false;
    }
    image.channels = body[1] == '6' ? 3 : 1;
    image.width = numbers[0];
    image.height = numbers[1];
    if (at >= body.size() || numbers[2] != 255 || !image.width || !image.height || image.width > most_side || image.height > most_side ||
        image.width * image.height > most_pixels || body.size() - at - 1 < image.width * image.height * image.channels)
        return false;
    const auto first = body.begin() + std::ptrdiff_t(at + 1);
    image.pixels.assign(first, first + std::ptrdiff_t(image.width * image.height * image.channels));
    return true;
}

bool decode(const std::string &body, Image &image) {
    std::vector<unsigned char> buffer;
    std::vector<png_bytep> rows;
    if (body.size() > 8 && !std::memcmp(body.data(), "\x89PNG\r\n\x1a\n", 8)) return decode_png(body, image, buffer, rows);
    return body.size() > 2 && body[0] == 'P' && (body[1] == '5' || body[1] == '6') && decode_ppm(body, image);
}

// ---- answers -----------------------------------------------------------------------------------------------------------------------

struct Response {
    int status;
    std::string body;  // JSON
};

std::string quoted(const std::string &text) {
    std::string made = "\"";
    for (const char c : text) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", c);
        if (c == '"' || c == '\\') made += '\\';
        if ((unsigned char)c < 32) made += code;
        else made += c;
    }
    return made + '"';
}

Response problem(int status, const std::string &text) { return {status, "{\"problem\": " + quoted(text) + "}\n"}; }

Response classify(const Library &library, cnet_model *model, const std::string &body) {
    Image image;
    if (!decode(body, image)) return problem(415, "expected a PNG file, or a binary PPM or PGM of 8 bits, of at most 32 megapixels");
    std::vector<float> prepared(library.channels * library.height * library.width), logits(library.classes);
    cnet_status status =
        library.prepare(image.pixels.data(), image.height, image.width, image.channels, 0, prepared.data(), prepared.size());
    if (status == CNET_BAD_IMAGE) return problem(415, cnet_message(status));
    if (status == CNET_OK) status = library.run(model, prepared.data(), prepared.size(), 1, logits.data(), logits.size());
    if (status != CNET_OK) return problem(500, cnet_message(status));
    std::vector<double> share(logits.begin(), logits.end());
    const double most = *std::max_element(share.begin(), share.end());
    for (double &value : share) value = std::exp(value - most);
    const double sum = std::accumulate(share.begin(), share.end(), 0.0);
    if (!std::isfinite(sum)) return problem(500, "the network's output is not finite");
    std::vector<size_t> order(share.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return share[a] > share[b]; });
    std::string made = "{\"guesses\": [";
    for (size_t i = 0; i < std::min<size_t>(top, order.size()); i++) {
        const char *name = "";
        library.class_name(order[i], &name);
        char number[64];
        std::snprintf(number, sizeof number, "%.17g", share[order[i]] / sum);
        made += std::string(i ? ", " : "") + "{\"class\": " + std::to_string(order[i]) + ", \"name\": " + (*name ? quoted(name) : "null") +
                ", \"probability\": " + number + "}";
    }
    return {200, made + "]}\n"};
}

// ---- HTTP --------------------------------------------------------------------------------------------------------------------------

struct Request {
    std::string method, path, body;
};

// Up to `count` more bytes before the deadline, and how many; 0 or less where none come.
ssize_t receive(int client, char *part, size_t count, std::chrono::steady_clock::time_point deadline) {
    using std::chrono::milliseconds;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd waiting{client, POLLIN, 0};
    if (left <= 0 || poll(&waiting, 1, (int)left) <= 0) return 0;
    return recv(client, part, count, 0);
}

bool receive(int client, std::string &data, size_t count, std::chrono::steady_clock::time_point deadline) {
    char part[1 << 16];
    const ssize_t got = receive(client, part, std::min(count, sizeof part), deadline);
    if (got > 0) data.append(part, (size_t)got);
    return got > 0;
}

void send_all(int client, const std::string &data) {
    for (size_t done = 0; done < data.size();) {
        const ssize_t sent = send(client, data.data() + done, data.size() - done, MSG_NOSIGNAL);
        if (sent <= 0) return;
        done += (size_t)sent;
    }
}

// The value of a header; nothing where it is absent.
std::optional<std::string> header_of(const std::string &head, const char *name, bool &twice) {
    std::optional<std::string> value;
    const size_t length = std::strlen(name);
    for (size_t at = head.find("\r\n"); at != std::string::npos && at + 2 < head.size(); at = head.find("\r\n", at + 2)) {
        const char *line = head.c_str() + at + 2;
        if (strncasecmp(line, name, length) || line[length] != ':') continue;
        twice = twice || value.has_value();
        const size_t from = head.find_first_not_of(" \t", at + 2 + length + 1), to = head.find("\r\n", at + 2);
        value = from < to ? head.substr(from, to - from) : "";
    }
    return value;
}

// Reads a request; returns what to answer instead where it is refused.
std::optional<Response> read_request(int client, Request &request) {
    const auto deadline = std::chrono::steady_clock::now() + most_time;
    std::string data;
    size_t end;
    while ((end = data.find("\r\n\r\n")) == std::string::npos) {
        if (data.size() > most_header) return problem(431, "the header is too long");
        if (!receive(client, data, most_header, deadline)) return problem(408, "the request did not come in time");
    }
    const std::string head = data.substr(0, end + 2);
    const size_t space = head.find(' '), second = head.find(' ', space + 1), line = head.find("\r\n");
    if (space == std::string::npos || second == std::string::npos || second > line || head.compare(second + 1, 5, "HTTP/"))
        return problem(400, "expected an HTTP request");
    request.method = head.substr(0, space);
    request.path = head.substr(space + 1, second - space - 1);
    bool twice = false;
    const auto length = header_of(head, "Content-Length", twice), coding = header_of(head, "Transfer-Encoding", twice);
    const auto expects = header_of(head, "Expect", twice);
    if (coding) return problem(501, "expected a Content-Length and no Transfer-Encoding");
    if (twice) return problem(400, "a header is there twice");
    if (!length) return request.method == "POST" ? std::optional(problem(411, "expected a Content-Length")) : std::nullopt;
    if (length->empty() || length->size() > 9 || length->find_first_not_of("0123456789") != std::string::npos)
        return length->find_first_not_of("0123456789") == std::string::npos && !length->empty()
                   ? problem(413, "expected at most 16 MiB")
                   : problem(400, "the Content-Length is no number");
    const size_t size = std::stoul(*length);
    if (size > most_body) return problem(413, "expected at most 16 MiB");
    request.body = data.substr(end + 4, size);
    if (expects && request.body.size() < size) send_all(client, "HTTP/1.1 100 Continue\r\n\r\n");
    while (request.body.size() < size)
        if (!receive(client, request.body, size - request.body.size(), deadline)) return problem(408, "the request did not come in time");
    return std::nullopt;
}

Response answer(const Library &library, cnet_model *model, int client) {
    try {
        Request request;
        if (const auto refused = read_request(client, request)) return *refused;
        if (request.path == "/classify")
            return request.method == "POST" ? classify(library, model, request.body) : problem(405, "expected POST");
        if (request.path != "/model") return problem(404, "expected POST /classify or GET /model");
        if (request.method != "GET") return problem(405, "expected GET");
        const char *description = "{}";
        library.describe(&description);
        return {200, std::string(description) + "\n"};
    } catch (const std::bad_alloc &) {
        return problem(503, "out of memory");
    }
}

void serve(const Library &library, int listening) {
    cnet_model *model;
    require(library.create(1, &model));
    for (;;) {
        const int client = accept(listening, nullptr, nullptr);
        if (client < 0) {
            usleep(10000);  // too many open files, or a client that went away at once
            continue;
        }
        const timeval patience{5, 0};
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        const Response made = answer(library, model, client);
        send_all(client, "HTTP/1.1 " + std::to_string(made.status) + (made.status == 200 ? " OK" : " Refused") +
                             "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
                             std::to_string(made.body.size()) + "\r\n\r\n" + made.body);
        // What the client still sends is taken for a moment, else the answer to a refused request is lost with the connection.
        shutdown(client, SHUT_WR);
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
        char rest[1 << 16];
        for (size_t dropped = 0; dropped < most_body;) {
            const ssize_t got = receive(client, rest, sizeof rest, deadline);
            if (got <= 0) break;
            dropped += (size_t)got;
        }
        close(client);
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2 && argc != 3) fail("expected MODEL.so and, if you like, a port [8080; 0: any that is free]");
    const long port = argc == 3 ? std::strtol(argv[2], nullptr, 10) : 8080;
    if (port < 0 || port > 65535) fail("the port must be 0 to 65535");
    const Library library = open_library(argv[1]);
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (listening < 0 || bind(listening, (sockaddr *)&address, size) || listen(listening, 64) ||
        getsockname(listening, (sockaddr *)&address, &size))
        fail("can't listen on port " + std::to_string(port) + ": " + std::strerror(errno));
    std::printf("listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    std::fflush(stdout);
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; i++) threads.emplace_back(serve, std::cref(library), listening);
    for (std::thread &thread : threads) thread.join();
}
