"""Compile every kernel as a GPU would get it: Triton's compiler needs none to do so.

``test_triton.py`` runs this file. What is compiled are the launches that all chains ask for.
"""

import re
from pathlib import Path
from typing import Any

import torch
import triton
from chains import CHAINS, Draw, results
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from densenet_from_scratch.kernels import gpu

TARGET = GPUTarget("cuda", 80, 32)
SHARED = 99 * 1024  # bytes that a small GPU has for a program
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
compiled: dict[Any, int] = {}


def kind_of(name: str, value: Any) -> str:
    """Return what Triton makes of an argument's type."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if name.isupper() or value is None or value == 1:
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def compile_only(kernel: Any, _grid: Any, *arguments: Any, **settings: Any) -> None:
    """Stand in for ``gpu.start``."""
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | settings
    kinds = {name: kind_of(name, values[name]) for name in kernel.arg_names}
    constants = {name: values[name] for name, kind in kinds.items() if kind == "constexpr"}
    key = kernel.__name__, *kinds.items(), *constants.items()
    if key not in compiled:
        source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
        found = triton.compile(source, target=TARGET, options={"enable_fp_fusion": True})
        compiled[key] = found.metadata.shared
        if "rows" not in constants:
            places = re.search(r"arith.muli .*: tensor<\d+x1xi64>", found.asm["ttir"])
            assert places, f"{key} multiplies a row by a stride in 32 bits"
        assert ".local" not in found.asm["ptx"], f"{key} has too few registers"
        assert found.metadata.shared <= SHARED, key


gpu.DEVICES, gpu.start = ("cpu",), compile_only
for name, chain in CHAINS.items():
    results(chain, (gpu,), Draw((131, 37), torch.float32))
    if name.startswith("project"):  # Triton makes a constant of a number that is 1
        results(chain, (gpu,), Draw((1, 1), torch.bfloat16))
names = set(re.findall(r"self\._jit\.(\w+)", Path(gpu.__file__).read_text()))
missing = names - {name for name, *_ in compiled}
assert not missing, missing
print(f"all kernels, {sorted(names)}, in {len(compiled)} forms; {max(compiled.values())} bytes")
