"""A script of runtimes.py: run a program with its arguments, and print its seconds and the kilobytes of memory that it took at most.

A small process of its own, since the memory of the forking parent would count as the child's.
"""

import os
import sys
import time

if __name__ == "__main__":
    start = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{sys.argv[1]} ended with status {os.waitstatus_to_exitcode(status)}")
    print(time.perf_counter() - start, usage.ru_maxrss)
