"""A resolver of names that falls silent: ``python -m tests.fakes.names HOST ADDRESS`` answers at port 53 of the host.

Every name has that address. A line of standard input, ``silent`` or ``answers``, says what it does from there on; it
prints a line when it listens and when it has taken one.
"""

import socket
import struct
import sys
import threading

A, IN, TTL_S = 1, 1, 0
HEADER = struct.Struct("!6H")


class Names:
    """The fake, which may be told to be silent at any time."""

    def __init__(self, host: str, address: str) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 53))
        self.is_silent = False

    def serve(self) -> None:
        """Answers for ever."""
        while True:
            data, client = self._socket.recvfrom(4096)
            if not self.is_silent:
                self._socket.sendto(self._answer(data), client)

    def _answer(self, data: bytes) -> bytes:
        """Gives the address, where that is asked for: RFC 1035, section 4.1."""
        end = data.index(b"\0", HEADER.size) + 5
        (kind,) = struct.unpack_from("!H", data, end - 4)
        found = b""
        if kind == A:
            # A pointer to the name in the question, so that it needn't be written again.
            found = struct.pack("!HHHIH", 0xC000 | HEADER.size, A, IN, TTL_S, 4) + socket.inet_aton(self._address)
        return (
            HEADER.pack(*struct.unpack_from("!H", data), 0x8180, 1, bool(found), 0, 0) + data[HEADER.size : end] + found
        )


def main() -> None:
    names = Names(*sys.argv[1:])
    threading.Thread(target=names.serve, daemon=True).start()
    print(flush=True)
    for line in sys.stdin:
        names.is_silent = line.strip() == "silent"
        print(flush=True)


if __name__ == "__main__":
    main()
