#!/usr/bin/env python3
"""Runs a command with cross-memory attach refused, as containers and hardened systems refuse it.

    python3 without_attach.py bash run_all.sh OUT.jsonl

A system-call filter, inherited by all that the command starts, answers EPERM to process_vm_readv
and process_vm_writev. Peers and ringtree then go the way each has without them.
"""

import ctypes
import os
import platform
import struct
import sys

# Linux: the audit architecture, and the numbers of process_vm_readv and process_vm_writev
MACHINES = {"x86_64": (0xC000003E, 310, 311), "aarch64": (0xC00000B7, 270, 271)}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: load a word, jump if equal, return
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    architecture, read, write = MACHINES[platform.machine()]
    filter_program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [
            (LOAD, 0, 0, 4),  # seccomp_data.arch
            (EQUAL, 0, 3, architecture),
            (LOAD, 0, 0, 0),  # seccomp_data.nr
            (EQUAL, 2, 0, read),
            (EQUAL, 1, 0, write),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, REFUSE),
        ]
    )
    instructions = ctypes.create_string_buffer(filter_program)
    program = struct.pack("HxxxxxxP", len(filter_program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for option in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)]:
        if libc.prctl(*option):
            sys.exit(f"without_attach: the filter is refused: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


main()
