/* Preloaded: whatever changes a file below a folder is counted, and one of these calls fails, or is
 * where the process gets a signal. Nothing happens before faults_arm.
 *
 *     gcc -shared -fPIC -O1 -o faults.so faults.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char below[PATH_MAX];
static size_t length;
static long when;
static int error_number, signal_number;
static atomic_long count;

void faults_arm(const char *folder, long at, int error, int signal)
{
    strncpy(below, folder, sizeof below - 1);
    when = at, error_number = error, signal_number = signal;
    atomic_store(&count, 0);
    length = strlen(below);
}

long faults_count(void) { return atomic_load(&count); }

/* Whether the call is to fail. A disk that is full, or broken, stays so; a signal comes once. */
static int fails(void)
{
    long now = atomic_fetch_add(&count, 1) + 1;
    if (signal_number && now == when)
        kill(getpid(), signal_number);
    if (error_number && when && now >= when) {
        errno = error_number;
        return 1;
    }
    return 0;
}

static int inside(const char *path) { return length && !strncmp(path, below, length); }

static int opened_inside(int handle)
{
    char name[64], path[PATH_MAX];
    if (!length)
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", handle);
    ssize_t found = readlink(name, path, sizeof path - 1);
    if (found < 0)
        return 0;
    path[found] = 0;
    return inside(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void *data, size_t size)
{
    return opened_inside(handle) && fails() ? -1 : NEXT(write)(handle, data, size);
}

ssize_t pwrite64(int handle, const void *data, size_t size, off64_t at)
{
    return opened_inside(handle) && fails() ? -1 : NEXT(pwrite64)(handle, data, size, at);
}

int fsync(int handle) { return opened_inside(handle) && fails() ? -1 : NEXT(fsync)(handle); }

int ftruncate64(int handle, off64_t size)
{
    return opened_inside(handle) && fails() ? -1 : NEXT(ftruncate64)(handle, size);
}

int rename(const char *old, const char *new)
{
    return inside(new) && fails() ? -1 : NEXT(rename)(old, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    return inside(new) && fails() ? -1 : NEXT(renameat2)(from, old, to, new, flags);
}

int mkdir(const char *path, mode_t mode)
{
    return inside(path) && fails() ? -1 : NEXT(mkdir)(path, mode);
}

/* Removing works on a full disk too, but the process may be killed there. */
static void removing(void)
{
    int error = error_number;
    error_number = 0;
    fails();
    error_number = error;
}

int unlink(const char *path)
{
    if (inside(path))
        removing();
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    if (inside(path) || (path[0] != '/' && opened_inside(folder)))
        removing();
    return NEXT(unlinkat)(folder, path, flags);
}

int rmdir(const char *path)
{
    if (inside(path))
        removing();
    return NEXT(rmdir)(path);
}
