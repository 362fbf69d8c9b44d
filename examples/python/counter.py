#!/usr/bin/env python3
"""Counts how often it was started, in a file that it maps into memory.

    counter.py FILE

On an rpmemfs mount flush() commits everything stored since the last one as one
epoch: after a crash both numbers below are from the same start, never a mix.
Without flush() the stores are rolled back when the program ends.
"""
import mmap
import struct
import sys
import time

LAYOUT = struct.Struct("<QdQ")  # count, time of the last start, count again


def main(path):
    with open(path, "a+b") as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory:
            count, last, again = LAYOUT.unpack_from(memory)
            if count != again:
                sys.exit("torn: %d and %d" % (count, again))
            if count:
                print("start %d; the last was %s" % (count + 1, time.ctime(last)))
            else:
                print("the first start")
            LAYOUT.pack_into(memory, 0, count + 1, time.time(), count + 1)
            memory.flush()  # the commit


if __name__ == "__main__":
    main(sys.argv[1])
