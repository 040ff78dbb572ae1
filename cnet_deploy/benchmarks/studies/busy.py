"""A script of runtimes.py: keep one core busy, whose number is the argument, until it is killed."""

import os
import sys

if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    while True:
        pass
