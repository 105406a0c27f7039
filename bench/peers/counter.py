"""Instructions of the running process, counted by callgrind between two marks.

The process asks callgrind itself, by the client requests of `valgrind.h`: instrumentation begins
after the imports (which run about ten times faster without), and each mark dumps the count of all
threads since the last one. The request is a fixed sequence of instructions that do nothing on a
real CPU; it is called here through an executable page, so that no compiler is needed.
"""

import ctypes
import mmap
import platform
import re
import sys
from pathlib import Path

_CODE = bytes.fromhex(
    "4889f8"  # mov rax, rdi: address of the request and its arguments
    "31d2"  # xor edx, edx: the answer outside of valgrind
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi by 3, 13, 61, 51: the preamble
    "4887db"  # xchg rbx, rbx: the request
    "4889d0 c3"  # mov rax, rdx; ret
)
_RUNNING_ON_VALGRIND = 0x1001
_DUMP, _START = 0x43540000, 0x43540004


class Callgrind:
    """The callgrind that this process runs under."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64" or sys.platform != "linux":
            raise SystemExit("instructions can be counted on x86-64 Linux only")
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=7)
        self._page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._ask = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        if not self._request(_RUNNING_ON_VALGRIND):
            raise SystemExit("not running under valgrind")

    def start(self) -> None:
        """Begin to count."""
        self._request(_START)

    def mark(self) -> None:
        """Write the count since the last mark to the next file, and begin at zero."""
        self._request(_DUMP)

    def _request(self, number: int) -> int:
        return self._ask((ctypes.c_uint64 * 6)(number))


def list_valgrind_command(out_file: Path) -> list[str]:
    """Command line that a Python command is put behind."""
    return [
        "valgrind",
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--callgrind-out-file={out_file}",
    ]


def read_counts(out_file: Path) -> list[int]:
    """Instructions between the marks, in order; the first is what came before the first mark."""
    counts = []
    while (path := out_file.with_name(f"{out_file.name}.{len(counts) + 1}")).exists():
        match = re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE)
        if match is None:
            raise SystemExit(f"{path}: callgrind wrote no totals")
        counts.append(int(match[1]))
    return counts
