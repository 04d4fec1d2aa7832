"""The kernel's BPF machine, as far as filters of system calls use it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

#: The machines' numbers in <linux/audit.h>.
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}

ALLOW = 0x7FFF0000


def judge(code: bytes, machine: str, number: int, arguments: Sequence[int] = ()) -> int:
    """Return what a filter answers to a call: 0 if it is allowed, else the error's number.

    Args:
        code: the filter.
        machine: the one whose table of calls the caller uses.
        number: the call's number in it.
        arguments: up to six numbers of 64 bits.
    """
    call = struct.pack("=IIQ6Q", number, AUDIT[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    at, held = 0, 0
    while True:
        step, yes, no, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        match step:
            case 0x20:
                (held,) = struct.unpack_from("=I", call, value)
            case 0x05:
                at += value
            case 0x15:
                at += yes if held == value else no
            case 0x35:
                at += yes if held >= value else no
            case 0x45:
                at += yes if held & value else no
            case 0x06:
                assert value == ALLOW or value >> 16 == 5, hex(value)
                return 0 if value == ALLOW else value & 0xFFFF
            case _:
                raise AssertionError(f"unknown step {step:#x}")
