/* A disk that breaks on demand: loaded in front of the C library (LD_PRELOAD), it counts the calls that a program makes on
 * the files of its store, and lets chosen ones fail. The test steers it through a file of 64-bit words that both see:
 *
 *   0 armed   1 kinds (bits: 1 flush, 2 write, 4 truncate)   2 calls to let pass first   3 calls that fail then
 *   4 errno   5 the write is cut short instead of failing     6 calls of these kinds seen   7 calls failed
 *   8 all calls on the store's files since the program began   9 instead of failing: 1 the program is killed, 2 stopped
 *  10 microseconds that each flush takes longer, armed or not: a disk that is slow, and well
 *
 * With the bit 8 among the kinds, names count as well (made, renamed, removed), the flushes of folders, and the files of
 * copies: whatever lies below a folder "data".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FLUSH = 1, WRITE = 2, TRUNCATE = 4, NAME = 8 };
enum { PASS, FAIL, SHORT };

static volatile uint64_t *words;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("RELAY_BROKEN_DISK");
    if (!path) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) words = mapped;
}

static int is_ours(const char *path) {
    if (words[1] & NAME && strstr(path, "/data/")) return 1;
    return strstr(path, "/store/data.mdb") != 0 || strstr(path, "/store/journal") != 0;
}

static int is_of_store(int file) {
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static int judge(uint64_t kind) {
    __atomic_add_fetch(&words[8], 1, __ATOMIC_SEQ_CST);
    if (kind == FLUSH && words[10]) usleep((useconds_t)words[10]);
    if (!__atomic_load_n(&words[0], __ATOMIC_SEQ_CST) || !(words[1] & kind)) return PASS;
    uint64_t seen = __atomic_fetch_add(&words[6], 1, __ATOMIC_SEQ_CST);
    if (seen < words[2] || seen - words[2] >= words[3]) return PASS;
    if (words[5] && kind != WRITE) return PASS;
    __atomic_add_fetch(&words[7], 1, __ATOMIC_SEQ_CST);
    if (words[9]) {
        kill(getpid(), words[9] == 1 ? SIGKILL : SIGSTOP);
        return PASS;
    }
    if (words[5]) return SHORT;
    errno = (int)words[4];
    return FAIL;
}

static int verdict(int file, uint64_t kind) { return words && is_of_store(file) ? judge(kind) : PASS; }

static int name_verdict(const char *path) {
    return words && words[1] & NAME && is_ours(path) ? judge(NAME) : PASS;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int fdatasync(int file) { REAL(fdatasync); return verdict(file, FLUSH) ? -1 : real(file); }
int fsync(int file) { REAL(fsync); return verdict(file, FLUSH) ? -1 : real(file); }
int msync(void *at, size_t length, int flags) { REAL(msync); return real(at, length, flags); }
int ftruncate(int file, off_t length) { REAL(ftruncate); return verdict(file, TRUNCATE) ? -1 : real(file, length); }
int ftruncate64(int file, off64_t length) { REAL(ftruncate64); return verdict(file, TRUNCATE) ? -1 : real(file, length); }

int rename(const char *from, const char *to) { REAL(rename); return name_verdict(to) ? -1 : real(from, to); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return name_verdict(path) ? -1 : real(path, mode); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    /* The names of a folder that is removed are told apart by the folder. */
    int said = words && words[1] & NAME && (is_ours(path) || is_of_store(folder)) ? judge(NAME) : PASS;
    return said ? -1 : real(folder, path, flags);
}

static size_t part(size_t length) { return length > 1 ? length / 2 : length; }

ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) {
    REAL(pwrite);
    int said = verdict(file, WRITE);
    return said == FAIL ? -1 : real(file, bytes, said == SHORT ? part(length) : length, at);
}
ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    REAL(pwrite64);
    int said = verdict(file, WRITE);
    return said == FAIL ? -1 : real(file, bytes, said == SHORT ? part(length) : length, at);
}
ssize_t write(int file, const void *bytes, size_t length) {
    REAL(write);
    int said = words ? verdict(file, WRITE) : PASS;
    return said == FAIL ? -1 : real(file, bytes, said == SHORT ? part(length) : length);
}
/* Of several pieces a short write takes the first alone. */
ssize_t writev(int file, const struct iovec *pieces, int count) {
    REAL(writev);
    int said = words ? verdict(file, WRITE) : PASS;
    if (said == SHORT) { struct iovec one = { pieces[0].iov_base, part(pieces[0].iov_len) }; return real(file, &one, 1); }
    return said == FAIL ? -1 : real(file, pieces, count);
}
ssize_t pwritev(int file, const struct iovec *pieces, int count, off_t at) {
    REAL(pwritev);
    int said = verdict(file, WRITE);
    if (said == SHORT) { struct iovec one = { pieces[0].iov_base, part(pieces[0].iov_len) }; return real(file, &one, 1, at); }
    return said == FAIL ? -1 : real(file, pieces, count, at);
}
ssize_t pwritev64(int file, const struct iovec *pieces, int count, off64_t at) {
    REAL(pwritev64);
    int said = verdict(file, WRITE);
    if (said == SHORT) { struct iovec one = { pieces[0].iov_base, part(pieces[0].iov_len) }; return real(file, &one, 1, at); }
    return said == FAIL ? -1 : real(file, pieces, count, at);
}
