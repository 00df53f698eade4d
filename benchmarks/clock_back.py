"""A clock that is set back, for one process and its children, in the middle of their work.

The machine's own clock is everybody's. So what processes ask for the time of day goes by a library of a few
lines, which takes some off as soon as a file is there; monotonic clocks stay, as they do when a real clock
is set. (libfaketime was tried: in absolute sleeps it answers EINVAL after the clock has gone back.)
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t back(void) {
    const char *mark = getenv("CLOCK_BACK_IF");
    return mark && access(mark, F_OK) == 0 ? atol(getenv("CLOCK_BACK_S")) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec -= back();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec -= back();
    return failed;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
"""


def environment(folder: Path, mark: Path, back_s: int) -> dict[str, str]:
    """Of processes whose clock goes back by so much when `mark` appears; needs a C compiler (`cc`)."""
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / "clock_back.c", folder / "clock_back.so"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_BACK_IF": str(mark), "CLOCK_BACK_S": str(back_s)}
