/* Makes one system call of a process fail, on purpose: a library for LD_PRELOAD.
 *
 * Owns the wrappers around the functions of libc that shmrpc gets its memory, fds and threads from, and a count of the
 * calls of one of them. The process arms it when it is ready, through ctypes: `faults_arm("mmap", ENOMEM, 3, 0)` fails
 * the third call from then on, and with a last argument of 1 all later ones too. Unarmed, every wrapper only passes on.
 *
 * Some functions serve others too, so only what concerns shared memory counts: shared mappings of a file, watching of
 * one more fd, seals and duplicates, the fd of a process, files in /proc/self/fd and /dev/shm. Rings are those of pipes:
 * an eventfd that is written without blocking cannot fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum function {
    ACCEPT, BIND, CONNECT, DUP, EPOLL_CTL, EVENTFD, FALLOCATE, FCHMOD, FTRUNCATE, LISTEN, MADVISE, MEMFD_CREATE, MMAP,
    OPEN, PIPE, PIDFD, RECVMSG, RING, SEAL, SENDMSG, SOCKET, THREAD, FUNCTIONS
};

static const char *const names[FUNCTIONS] = {
    "accept", "bind", "connect", "dup", "epoll_ctl", "eventfd", "fallocate", "fchmod", "ftruncate", "listen", "madvise",
    "memfd_create", "mmap", "open", "pipe", "pidfd", "recvmsg", "ring", "seal", "sendmsg", "socket", "thread",
};

#define SO_PEERPIDFD_NUMBER 77
#define MADV_POPULATE_WRITE_NUMBER 23

static _Atomic int armed = FUNCTIONS;
static _Atomic int error_number;
static _Atomic int for_good;
static _Atomic long calls_left;
static _Atomic long calls_failed;

/* Arms one function; says whether there is one of that name. */
int faults_arm(const char *function, int error, long nth, int all_later)
{
    for (int which = 0; which < FUNCTIONS; which++) {
        if (strcmp(function, names[which]) == 0) {
            atomic_store(&armed, FUNCTIONS);
            atomic_store(&error_number, error);
            atomic_store(&for_good, all_later);
            atomic_store(&calls_left, nth);
            atomic_store(&calls_failed, 0);
            atomic_store(&armed, which);
            return 1;
        }
    }
    return 0;
}

/* How many calls have failed since it was armed. */
long faults_hits(void)
{
    return atomic_load(&calls_failed);
}

/* Passes everything on again. */
void faults_disarm(void)
{
    atomic_store(&armed, FUNCTIONS);
}

static bool fails(enum function which)
{
    if (atomic_load(&armed) != (int)which)
        return false;
    long left = atomic_fetch_sub(&calls_left, 1);
    if (left > 1 || (left < 1 && !atomic_load(&for_good)))
        return false;
    atomic_fetch_add(&calls_failed, 1);
    errno = atomic_load(&error_number);
    return true;
}

/* The function that this one stands before. */
#define NEXT(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    return fails(ACCEPT) ? -1 : NEXT(accept4)(fd, address, length, flags);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    return fails(BIND) ? -1 : NEXT(bind)(fd, address, length);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return fails(CONNECT) ? -1 : NEXT(connect)(fd, address, length);
}

int listen(int fd, int backlog)
{
    return fails(LISTEN) ? -1 : NEXT(listen)(fd, backlog);
}

int socket(int domain, int type, int protocol)
{
    return fails(SOCKET) ? -1 : NEXT(socket)(domain, type, protocol);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails(SENDMSG) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return fails(RECVMSG) ? -1 : NEXT(recvmsg)(fd, message, flags);
}

int getsockopt(int fd, int level, int option, void *restrict value, socklen_t *restrict length)
{
    if (level == SOL_SOCKET && option == SO_PEERPIDFD_NUMBER && fails(PIDFD))
        return -1;
    return NEXT(getsockopt)(fd, level, option, value, length);
}

int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event)
{
    return operation == EPOLL_CTL_ADD && fails(EPOLL_CTL) ? -1 : NEXT(epoll_ctl)(epfd, operation, fd, event);
}

int eventfd(unsigned int count, int flags)
{
    return fails(EVENTFD) ? -1 : NEXT(eventfd)(count, flags);
}

int pipe2(int ends[2], int flags)
{
    return fails(PIPE) ? -1 : NEXT(pipe2)(ends, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return fails(RING) ? -1 : NEXT(pwritev64v2)(fd, parts, count, offset, flags);
}

int memfd_create(const char *name, unsigned int flags)
{
    return fails(MEMFD_CREATE) ? -1 : NEXT(memfd_create)(name, flags);
}

int ftruncate64(int fd, off64_t length)
{
    return fails(FTRUNCATE) ? -1 : NEXT(ftruncate64)(fd, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    int before = errno;
    if (!fails(FALLOCATE))
        return NEXT(posix_fallocate64)(fd, offset, length);
    int error = errno; /* this one returns it */
    errno = before;
    return error;
}

int fchmod(int fd, mode_t mode)
{
    return fails(FCHMOD) ? -1 : NEXT(fchmod)(fd, mode);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    if (fd >= 0 && (flags & MAP_SHARED) && fails(MMAP))
        return MAP_FAILED;
    return NEXT(mmap64)(address, length, protection, flags, fd, offset);
}

int madvise(void *address, size_t length, int advice)
{
    return advice == MADV_POPULATE_WRITE_NUMBER && fails(MADVISE) ? -1 : NEXT(madvise)(address, length, advice);
}

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if ((command == F_ADD_SEALS && fails(SEAL)) || (command == F_DUPFD_CLOEXEC && fails(DUP)))
        return -1;
    return NEXT(fcntl64)(fd, command, argument);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    bool shared = strncmp(path, "/proc/self/fd/", 14) == 0 || strncmp(path, "/dev/shm/", 9) == 0;
    return shared && fails(OPEN) ? -1 : NEXT(open64)(path, flags, mode);
}

long syscall(long number, ...)
{
    va_list rest;
    long arguments[6];
    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        arguments[at] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_pidfd_open && fails(PIDFD))
        return -1;
    return NEXT(syscall)(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes, void *(*begin)(void *),
                   void *restrict argument)
{
    int before = errno;
    if (!fails(THREAD))
        return NEXT(pthread_create)(thread, attributes, begin, argument);
    int error = errno; /* this one returns it */
    errno = before;
    return error;
}
