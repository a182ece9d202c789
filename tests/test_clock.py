"""The clock jumps by a year, both ways, while the service runs.

A library loaded before the C library's own functions adds seconds to the time of day, for the service and its job
alone. Intervals (CLOCK_MONOTONIC) go on as they do when somebody sets a real clock.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from detrigger.models.store import VersionStore
from tests import fake_job
from tests.live import AUTH, live_server, load
from tests.test_service_admin import gauge, served, wait_for_end, wait_for_step, wait_until_served
from tests.toys import publish_toy

YEAR = 365 * 86_400
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;

__attribute__((constructor)) static void start(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    void *found = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) ahead = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]


def test_a_clock_that_jumps_by_a_year_breaks_nothing(tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    ahead.write_bytes(bytes(8))
    (tmp_path / "clock.c").write_text(SOURCE)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", "clock.so", "clock.c"],  # noqa: S607
        cwd=tmp_path,
        check=True,
    )
    environment = {
        "LD_PRELOAD": str(tmp_path / "clock.so"),
        "CLOCK_AHEAD": str(ahead),
        "DETRIGGER_POLL_INTERVAL": "0.1",
        "DETRIGGER_VERIFY_INTERVAL": "0.5",
    }
    with (
        live_server(tmp_path, fake_job.install(tmp_path) | environment) as server,
        httpx.Client(base_url=server.url, headers=AUTH, timeout=60) as client,
        load(server.url, 2) as running,
    ):
        dates: set[str] = set()
        for jump in (YEAR, -YEAR, 0):
            job = client.post("/admin/retrain").json()["id"]
            wait_for_step(client, job, 1)
            with ahead.open("r+b") as file:  # in place, as the processes have it mapped
                file.write(jump.to_bytes(8, sys.byteorder, signed=True))
            end = wait_for_end(client, job)
            assert end["state"] == "succeeded", end
            assert 0 < end["seconds"] < 90
            assert 0 < gauge(client, "retrain_duration_seconds") < 90
            wait_until_served(client, end["version"])
            other = publish_toy(server.store).id  # whatever its id says, the last promotion counts
            wait_until_served(client, other)
            assert client.post("/admin/rollback").json()["version"] == end["version"]
            assert served(client) == end["version"]
            assert client.get("/readyz").status_code == 200
            assert gauge(client, "served_version_damaged") == 0
            assert gauge(client, "promotion_log_damaged") == 0
            dates.add(client.get("/livez").headers["date"].split()[3])
        running.stopping.set()
    assert len(dates) == 3, "the clock did not jump"
    assert running.failures == []
    assert set(running.statuses) == {200}
    store = VersionStore(tmp_path / "store")
    assert store.damaged() == {}
    assert len(store.promotions()) == 10
