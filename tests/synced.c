/* Remembers how much of each append-only file is certainly on disk: preloaded into a redis-server by crashing_redis.py.
 *
 * SYNCED_FOLDER names a folder. For each inode whose file's name ends in ".aof" it gets a file <inode> of 8 bytes: the file's size
 * when the last sync that succeeded began. What was written while the disk was at work may or may not be on it, so it does not count.
 * The 8 bytes are mapped and stored at once: they survive a SIGKILL of this process, as its page cache does, and are never half
 * written. SYNCED_PAUSE_MS makes each sync take so much longer, as on a disk that is busy.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 64 /* a server of a test rewrites its file never or seldom */

static struct {
    ino_t inode;
    _Atomic uint64_t *size;
} files[FILES];
static int known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_truncate)(const char *, off_t);
static int (*real_ftruncate)(int, off_t);

static int open_record(const char *name) {
    char path[4096];
    const char *folder = getenv("SYNCED_FOLDER");
    if (!folder || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return -1;
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void begin(void) {
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_truncate = (int (*)(const char *, off_t))dlsym(RTLD_NEXT, "truncate");
    real_ftruncate = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate");
    int loaded = open_record("loaded"); /* tells the test that this library is at work */
    if (loaded >= 0) close(loaded);
}

static int is_append_only(const char *path, ssize_t length) {
    return length > 4 && !memcmp(path + length - 4, ".aof", 4);
}

static int is_open_append_only(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return is_append_only(path, readlink(link, path, sizeof path));
}

/* Where the size of this inode is kept, or NULL if `wanted` is 0 and it is not known yet. */
static _Atomic uint64_t *record_of(ino_t inode, int wanted) {
    _Atomic uint64_t *size = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < known; i++)
        if (files[i].inode == inode) size = files[i].size;
    if (!size && wanted && known < FILES) {
        char name[32];
        snprintf(name, sizeof name, "%llu", (unsigned long long)inode);
        int record = open_record(name);
        if (record >= 0 && real_ftruncate(record, 8) == 0) {
            void *mapped = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, record, 0);
            if (mapped != MAP_FAILED) {
                size = mapped;
                files[known].inode = inode;
                files[known++].size = size;
            }
        }
        if (record >= 0) close(record);
    }
    pthread_mutex_unlock(&lock);
    return size;
}

static int sync_file(int fd, int (*real)(int)) {
    struct stat before;
    int found = fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    const char *pause_ms = getenv("SYNCED_PAUSE_MS");
    if (pause_ms) usleep(1000 * (useconds_t)atoi(pause_ms));
    int result = real(fd);
    if (result == 0 && found) {
        _Atomic uint64_t *size = record_of(before.st_ino, is_open_append_only(fd));
        if (size) atomic_store(size, (uint64_t)before.st_size);
    }
    return result;
}

int fsync(int fd) { return sync_file(fd, real_fsync); }

int fdatasync(int fd) { return sync_file(fd, real_fdatasync); }

/* A file that was cut and grows again must not look as if its new end had been synced: Redis cuts off half a command as it loads. */
static void forget_beyond(const struct stat *file, off_t length, int wanted) {
    _Atomic uint64_t *size = record_of(file->st_ino, wanted);
    if (size && atomic_load(size) > (uint64_t)length) atomic_store(size, (uint64_t)length);
}

int truncate64(const char *path, off64_t length) {
    int result = real_truncate(path, length);
    struct stat file;
    if (result == 0 && stat(path, &file) == 0) forget_beyond(&file, length, is_append_only(path, (ssize_t)strlen(path)));
    return result;
}

int ftruncate64(int fd, off64_t length) {
    int result = real_ftruncate(fd, length);
    struct stat file;
    if (result == 0 && fstat(fd, &file) == 0) forget_beyond(&file, length, is_open_append_only(fd));
    return result;
}

int truncate(const char *path, off_t length) { return truncate64(path, length); }

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
