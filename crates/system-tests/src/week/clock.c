/* Another clock for the programs of a test host, put between them and the kernel by /etc/ld.so.preload.
 *
 * A file that the test writes says by how much the host's time is ahead of the machine's. What a program learns of the time of
 * day, of the age of files and of the time since the boot agrees with that. The monotonic clock is the machine's: waits last as
 * long as they say. Init and its helpers are left alone, since their timers are the kernel's. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

#define SECOND 1000000000LL
#define BOOT_ID 36

/* As the test writes it, in nanoseconds. */
struct shared {
  int64_t offset;        /* added to the machine's time */
  int64_t since;         /* the machine's time when the host was given its own */
  int64_t boot;          /* the host's time when it was booted */
  char boot_id[BOOT_ID]; /* and which boot that was */
};

static const struct shared *shared;

__attribute__((constructor)) static void begin(void) {
  const char *wanted = getenv("LP_CLOCK");
  if (getpid() == 1 || (wanted && !strcmp(wanted, "off")) || !strncmp(program_invocation_short_name, "systemd", 7)) return;
  int fd = syscall(SYS_openat, AT_FDCWD, "/srv/repo/clock/now", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void *mapped = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped != MAP_FAILED) shared = mapped;
}

static int64_t offset(void) { return shared ? __atomic_load_n(&shared->offset, __ATOMIC_RELAXED) : 0; }

static int64_t machine_now(void) {
  struct timespec now = {0, 0};
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  return now.tv_sec * SECOND + now.tv_nsec;
}

int clock_gettime(clockid_t id, struct timespec *to) {
  int result = syscall(SYS_clock_gettime, id, to);
  if (!result && shared && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    int64_t now = to->tv_sec * SECOND + to->tv_nsec + offset();
    to->tv_sec = now / SECOND;
    to->tv_nsec = now % SECOND;
  }
  return result;
}

int gettimeofday(struct timeval *to, void *zone) {
  int64_t now = machine_now() + offset();
  to->tv_sec = now / SECOND;
  to->tv_usec = now % SECOND / 1000;
  if (zone) memset(zone, 0, sizeof(struct timezone));
  return 0;
}

time_t time(time_t *to) {
  time_t now = (machine_now() + offset()) / SECOND;
  if (to) *to = now;
  return now;
}

/* Files that were changed in this stretch of time bear the machine's; the test sets those of former ones. */
static int64_t shift(int64_t at) { return at >= shared->since && at <= machine_now() + SECOND ? offset() : 0; }

static void shift_spec(struct timespec *at) {
  int64_t moved = at->tv_sec * SECOND + at->tv_nsec;
  moved += shift(moved);
  at->tv_sec = moved / SECOND;
  at->tv_nsec = moved % SECOND;
}

static int look(int directory, const char *path, struct stat *to, int flags) {
  int result = syscall(SYS_newfstatat, directory, path, to, flags);
  if (!result && shared) shift_spec(&to->st_mtim);
  return result;
}

int stat(const char *path, struct stat *to) { return look(AT_FDCWD, path, to, 0); }
int lstat(const char *path, struct stat *to) { return look(AT_FDCWD, path, to, AT_SYMLINK_NOFOLLOW); }
int fstat(int fd, struct stat *to) { return look(fd, "", to, AT_EMPTY_PATH); }
int fstatat(int directory, const char *path, struct stat *to, int flags) { return look(directory, path, to, flags); }
int stat64(const char *path, struct stat64 *to) { return look(AT_FDCWD, path, (struct stat *)to, 0); }
int lstat64(const char *path, struct stat64 *to) { return look(AT_FDCWD, path, (struct stat *)to, AT_SYMLINK_NOFOLLOW); }
int fstat64(int fd, struct stat64 *to) { return look(fd, "", (struct stat *)to, AT_EMPTY_PATH); }
int fstatat64(int directory, const char *path, struct stat64 *to, int flags) {
  return look(directory, path, (struct stat *)to, flags);
}

static void shift_statx(struct statx_timestamp *at) {
  int64_t moved = at->tv_sec * SECOND + at->tv_nsec;
  moved += shift(moved);
  at->tv_sec = moved / SECOND;
  at->tv_nsec = moved % SECOND;
}

int statx(int directory, const char *path, int flags, unsigned mask, struct statx *to) {
  int result = syscall(SYS_statx, directory, path, flags, mask, to);
  if (!result && shared) shift_statx(&to->stx_mtime);
  return result;
}

/* What the kernel would say at this time. A boot that the test does not know of yet was just now. */
static int uptime(void) {
  char boot_id[BOOT_ID] = "";
  int64_t seconds = 1;
  int ends[2];
  int fd = syscall(SYS_openat, AT_FDCWD, "/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    if (read(fd, boot_id, BOOT_ID) == BOOT_ID && !memcmp(boot_id, shared->boot_id, BOOT_ID))
      seconds = (machine_now() + offset() - shared->boot) / SECOND;
    close(fd);
  }
  if (pipe2(ends, O_CLOEXEC)) return -1;
  dprintf(ends[1], "%lld.00 %lld.00\n", (long long)seconds, (long long)seconds);
  close(ends[1]);
  return ends[0];
}

static int open_at(int directory, const char *path, int flags, mode_t mode) {
  if (shared && path && !strcmp(path, "/proc/uptime")) return uptime();
  return syscall(SYS_openat, directory, path, flags, mode);
}

#define MODE(last) \
  mode_t mode = 0; \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list arguments; \
    va_start(arguments, last); \
    mode = va_arg(arguments, mode_t); \
    va_end(arguments); \
  }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int directory, const char *path, int flags, ...) { MODE(flags) return open_at(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) {
  MODE(flags) return open_at(directory, path, flags | O_LARGEFILE, mode);
}
