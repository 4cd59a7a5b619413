/* Loaded into a server with LD_PRELOAD: the system calls and functions that fail when a test says so.
 * The test writes the numbers of `struct Faults` into a file that both have mapped. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct Faults {
  volatile int64_t clock_offset_s;    /* added to the time of day */
  volatile int64_t fail_allocations;  /* every n-th of at least allocation_bytes fails; 0 = none */
  volatile int64_t allocation_bytes;
  volatile int64_t failed_allocations; /* counted here */
  volatile int64_t fail_threads;       /* 1: no new threads */
  volatile int64_t failed_threads;
  volatile int64_t fail_fsync; /* 1: EIO */
  volatile int64_t failed_fsyncs;
};

static struct Faults none;
static struct Faults* faults = &none;
static volatile int64_t allocations;

__attribute__((constructor)) static void attach(void) {
  const char* path = getenv("FAULTS_FILE");
  if (path == NULL) return;
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* mapped = mmap(NULL, sizeof(struct Faults), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped != MAP_FAILED) faults = mapped;
}

/* --- the time of day ------------------------------------------------------------------------ */

int clock_gettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*);
  if (real == NULL) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  const int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    now->tv_sec += faults->clock_offset_s;
  }
  return result;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  (void)zone;
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec;
  now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into != NULL) *into = now.tv_sec;
  return now.tv_sec;
}

/* --- memory --------------------------------------------------------------------------------- */

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static int fails(size_t bytes) {
  const int64_t every = faults->fail_allocations;
  if (every == 0 || bytes < (size_t)faults->allocation_bytes) return 0;
  if (__atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED) % every != 0) return 0;
  __atomic_add_fetch(&faults->failed_allocations, 1, __ATOMIC_RELAXED);
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t bytes) { return fails(bytes) ? NULL : __libc_malloc(bytes); }

void* calloc(size_t count, size_t size) {
  return fails(count * size) ? NULL : __libc_calloc(count, size);
}

void* realloc(void* block, size_t bytes) {
  return fails(bytes) ? NULL : __libc_realloc(block, bytes);
}

void* memalign(size_t alignment, size_t bytes) {
  return fails(bytes) ? NULL : __libc_memalign(alignment, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** block, size_t alignment, size_t bytes) {
  void* made = memalign(alignment, bytes);
  if (made == NULL) return ENOMEM;
  *block = made;
  return 0;
}

/* --- threads, disks ------------------------------------------------------------------------- */

int pthread_create(pthread_t* restrict thread, const pthread_attr_t* restrict attributes,
                   void* (*start)(void*), void* restrict argument) {
  typedef int (*Create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static Create real;
  if (real == NULL) real = (Create)dlsym(RTLD_NEXT, "pthread_create");
  if (faults->fail_threads) {
    __atomic_add_fetch(&faults->failed_threads, 1, __ATOMIC_RELAXED);
    return EAGAIN;
  }
  return real(thread, attributes, start, argument);
}

static int sync_or_fail(const char* name, int fd) {
  if (faults->fail_fsync) {
    __atomic_add_fetch(&faults->failed_fsyncs, 1, __ATOMIC_RELAXED);
    errno = EIO;
    return -1;
  }
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  return real(fd);
}

int fsync(int fd) { return sync_or_fail("fsync", fd); }
int fdatasync(int fd) { return sync_or_fail("fdatasync", fd); }
