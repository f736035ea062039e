/* A disk that fails on command: preloaded, it stands between a process and libc's write, fdatasync, fsync and rename.
 *
 * disk_arm() names the folder that is watched, which call of a kind fails next, and how. What was durable is
 * written to a trace: "S size path" after a good sync, "B path" after a failed one, "O path" when a file is begun anew,
 * "D path" after a good sync of a folder, "R old<tab>new" after a rename, "F path" when the fault struck. Only files below the folder count; LevelDB's own LOG
 * is no data.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KIND_WRITE = 1, KIND_SYNC = 2, KIND_RENAME = 3 };

static char root[PATH_MAX];
static int trace = -1, kind, error, is_short, is_lasting;
static long left;

void disk_arm(const char *folder, int trace_fd, int which, long number, int code, int shortened, int lasting) {
    snprintf(root, sizeof root, "%s/", folder);
    trace = trace_fd, kind = which, left = number, error = code, is_short = shortened, is_lasting = lasting;
}

static int is_watched(const char *path) {
    const char *name = strrchr(path, '/');
    return root[0] && !strncmp(path, root, strlen(root)) && strcmp(name, "/LOG") && strcmp(name, "/LOG.old");
}

static int find(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = 0;
    return size > 0 && is_watched(path);
}

static int strikes(int which, const char *path) {
    if (which != kind || left < 1 || (left > 1 && left--)) return 0;
    if (!is_lasting) left = 0;
    dprintf(trace, "F %s\n", path);
    return 1;
}

static int open_with(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, mode_t) = dlsym(RTLD_NEXT, name);
    int fd = real(path, flags, mode);
    if (fd >= 0 && flags & O_TRUNC && is_watched(path)) dprintf(trace, "O %s\n", path);
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_with("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_with("open64", path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    char path[PATH_MAX];
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (root[0] && find(fd, path) && strikes(KIND_WRITE, path)) {
        if (is_short) real(fd, data, size / 2);
        errno = error;
        return -1;
    }
    return real(fd, data, size);
}

static int sync_with(const char *name, int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    char path[PATH_MAX];
    struct stat about;
    if (!root[0] || !find(fd, path)) return real(fd);
    if (strikes(KIND_SYNC, path)) {
        dprintf(trace, "B %s\n", path);
        errno = error;
        return -1;
    }
    int result = real(fd);
    if (!result && !fstat(fd, &about)) {
        if (S_ISREG(about.st_mode)) dprintf(trace, "S %ld %s\n", (long)about.st_size, path);
        if (S_ISDIR(about.st_mode)) dprintf(trace, "D %s\n", path);
    }
    return result;
}

int fdatasync(int fd) { return sync_with("fdatasync", fd); }
int fsync(int fd) { return sync_with("fsync", fd); }

int rename(const char *old, const char *new) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    if (is_watched(new) && strikes(KIND_RENAME, new)) {
        errno = error;
        return -1;
    }
    int result = real(old, new);
    if (!result && is_watched(new)) dprintf(trace, "R %s\t%s\n", old, new);
    return result;
}
