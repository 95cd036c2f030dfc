"""A child that takes a request and never answers."""

import sys
import time

if __name__ == "__main__":
    sys.stdin.readline()
    time.sleep(60)
