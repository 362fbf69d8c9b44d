#!/usr/bin/env python3
"""Sets and checks numbered keys in a memcached, over its ASCII protocol.

    keys.py SOCKET wait                  until memcached answers, at most 10 s
    keys.py SOCKET fill TAG FIRST LAST   set the keys FIRST <= i < LAST to the tag's values
    keys.py SOCKET check TAG FIRST LAST  compare them; exit status 1 if one is not right
    keys.py SOCKET count                 print how many keys there are
"""
import socket
import sys
import time


def value(tag, i):
    """Values are 10 to 910 bytes long, and each is found nowhere else."""
    return b"%s %d " % (tag.encode(), i) + b"." * (i % 900)


class Client:
    def __init__(self, path):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(path)
        self.file = s.makefile("rwb")

    def line(self):
        return self.file.readline().rstrip(b"\r\n")

    def fill(self, tag, first, last):
        for i in range(first, last):
            v = value(tag, i)
            self.file.write(b"set key%d 0 0 %d noreply\r\n%s\r\n" % (i, len(v), v))
        # Answers come in order: after this one everything above is stored.
        self.file.write(b"version\r\n")
        self.file.flush()
        if not self.line().startswith(b"VERSION"):
            sys.exit("memcached did not take the keys")

    def get(self, i):
        self.file.write(b"get key%d\r\n" % i)
        self.file.flush()
        head = self.line()
        if head == b"END":
            return None
        v = self.file.read(int(head.split()[3]) + 2)[:-2]
        if self.line() != b"END":
            sys.exit("memcached answered key%d with %r" % (i, head))
        return v

    def check(self, tag, first, last):
        right = wrong = missing = 0
        for i in range(first, last):
            v = self.get(i)
            right += v == value(tag, i)
            missing += v is None
            wrong += v is not None and v != value(tag, i)
        print(f"keys {first} to {last - 1} of {tag}: "
              f"{right} right, {wrong} wrong, {missing} missing")
        sys.exit(right != last - first)

    def count(self):
        self.file.write(b"stats\r\n")
        self.file.flush()
        while (line := self.line()) not in (b"END", b""):
            if line.startswith(b"STAT curr_items "):
                print(line.split()[2].decode())


def wait(path):
    limit = time.monotonic() + 10
    while True:
        try:
            return Client(path)
        except OSError as error:
            if time.monotonic() > limit:
                sys.exit(f"{path}: {error}")
            time.sleep(0.02)


def main(path, command, *args):
    if command == "wait":
        wait(path)
    elif command == "count":
        Client(path).count()
    elif command in ("fill", "check"):
        tag, first, last = args
        getattr(Client(path), command)(tag, int(first), int(last))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
