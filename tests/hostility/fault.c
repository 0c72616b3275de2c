/* Loaded into a process of ours before libc: moves its clock, and makes its disk refuse to be written. What to do stands
   in a small file that the test writes and this maps, so both can change while the process runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct order { int64_t seconds, error; };
static const struct order none;
static const volatile struct order *order = &none;
static const char *directory = "";

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULT_ORDER");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY) : -1;
    void *mapped = fd < 0 ? MAP_FAILED : mmap(0, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) order = mapped;
    if (getenv("FAULT_DIRECTORY")) directory = getenv("FAULT_DIRECTORY");
}

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

static int below(const char *path) {
    char full[4096];
    if (path[0] != '/') {
        if (!getcwd(full, sizeof full - strlen(path) - 2)) return 0;
        strcat(strcat(full, "/"), path);
        path = full;
    }
    size_t size = strlen(directory);
    return size && !strncmp(path, directory, size) && (path[size] == '/' || !path[size]);
}

static int refused(const char *path) {
    if (!order->error || !below(path)) return 0;
    errno = (int)order->error;
    return 1;
}

static int refused_fd(int fd) {
    char link[64], path[4096];
    if (!order->error) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(path);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = REAL(clock_gettime, id, now);
    if (!result && id == CLOCK_REALTIME) now->tv_sec += order->seconds;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    int result = REAL(gettimeofday, now, zone);
    if (!result) now->tv_sec += order->seconds;
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

/* gRPC waits for some things until a time of day: it has read it here, and the kernel counts by its own. */
long syscall(long number, ...) {
    long a[6];
    struct timespec until;
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        until = *(const struct timespec *)a[3];
        until.tv_sec -= order->seconds;
        a[3] = (long)&until;
    }
    return REAL(syscall, number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = va_arg(rest, mode_t);                                              \
        va_end(rest);                                                                    \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) && refused(path)) return -1; \
        return REAL(name, path, flags, mode);                                            \
    }
OPEN(open)
OPEN(open64)

#define ON_FD(type, name, parameters, ...)         \
    type name parameters {                         \
        if (refused_fd(fd)) return -1;             \
        return REAL(name, __VA_ARGS__);            \
    }
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(int, ftruncate, (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, (int fd, off64_t size), fd, size)

#define ON_PATH(name, parameters, ...)                 \
    int name parameters {                              \
        if (refused(path)) return -1;                  \
        return REAL(name, __VA_ARGS__);                \
    }
ON_PATH(rename, (const char *path, const char *to), path, to)
ON_PATH(unlink, (const char *path), path)
ON_PATH(rmdir, (const char *path), path)
ON_PATH(mkdir, (const char *path, mode_t mode), path, mode)
