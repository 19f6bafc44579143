#!/usr/bin/env python3
"""Compiles fold.cu to the PTX beside it, one file for each element type, with NVIDIA's compiler.

    bash check.sh           installs the compiler, compares the files, and has ptxas assemble them for every architecture
    bash check.sh --write   writes them

No GPU and no CUDA toolkit is needed. What the compiler writes is the same each time, so that the files are kept
with the sources, and CI compares them.
"""

import ctypes
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
# The number that fold.cu knows a type by is that of `DataType`.
ELEMENTS = {
    "f32": 1, "f64": 2, "bf16": 3, "i32": 4, "u8": 5, "i8": 6, "u32": 7, "u64": 8, "i64": 9, "f16": 10,
    "f8e4m3": 11, "f8e5m2": 12,
}
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
# The compiler stamps its own version of the language, which older drivers refuse. What the kernels use is in 6.3.
VERSION = "6.3"


def packages():
    """Where the wheels lie: nvidia/cu13 of the environment that runs this."""
    import nvidia

    return pathlib.Path(list(nvidia.__path__)[0]) / "cu13"


def compile_ptx(nvrtc, source, element):
    def call(name, *arguments):
        code = getattr(nvrtc, name)(*arguments)
        if code:
            log_bytes = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(log_bytes))
            log = ctypes.create_string_buffer(log_bytes.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"{name}: {code}\n{log.value.decode()}")

    program = ctypes.c_void_p()
    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"fold.cu", 0, None, None)
    options = [
        b"--gpu-architecture=compute_75", b"--std=c++17", b"--fmad=false", f"-DELEMENT={ELEMENTS[element]}".encode(),
    ]
    call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    ptx_bytes = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(ptx_bytes))
    ptx = ctypes.create_string_buffer(ptx_bytes.value)
    call("nvrtcGetPTX", program, ptx)
    text = re.sub(r"^\.version .*$", f".version {VERSION}", ptx.value.decode(), flags=re.M)
    # What names the compiler and its build says nothing about the kernels.
    return re.sub(r"^//.*\n", "", text, flags=re.M).lstrip("\n")


def main():
    if sys.argv[1:] not in (["--check"], ["--write"]):
        sys.exit(__doc__)
    is_check = sys.argv[1:] == ["--check"]
    nvrtc = ctypes.CDLL(str(packages() / "lib" / "libnvrtc.so.13"))
    source = (HERE / "fold.cu").read_text()
    for element in ELEMENTS:
        text = compile_ptx(nvrtc, source, element)
        path = HERE / f"{element}.ptx"
        if not is_check:
            path.write_text(text)
            continue
        if path.read_text() != text:
            sys.exit(f"{path.name} is not what fold.cu compiles to: run check.sh --write")
        with tempfile.TemporaryDirectory() as folder:
            ptxas = [
                subprocess.Popen([
                    packages() / "bin" / "ptxas", f"--gpu-name={architecture}", path, "-o", f"{folder}/{architecture}",
                ])
                for architecture in ARCHITECTURES
            ]
            if any([process.wait() for process in ptxas]):
                sys.exit(f"ptxas refuses {path.name}")
        print(f"{path.name}: as compiled; ptxas accepts it for {', '.join(ARCHITECTURES)}", flush=True)


main()
