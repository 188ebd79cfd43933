"""What an installed wheel must do wherever it was built.

The kernel is there, needs no warning, and attends as the definition does.
"""

import torch

from headstart.models.yoso.attention import sampled_attention
from headstart.models.yoso.kernels import cpu

query, key, value = torch.randn(3, 2, 3, 600, 20)
options = {"hash_code_len": 4, "num_hash": 6, "use_fast_hash": False, "seed": 0}
rows = sampled_attention(query, key, value, **options)
# in PyTorch: the kernel takes float32
expected = sampled_attention(query.double(), key.double(), value.double(), **options)
# a bit within rounding of zero may fall either way
differ = ((rows - expected).abs().amax(-1) > 1e-4).float().mean()
assert cpu.instruction_sets() and differ < 0.02, (cpu.instruction_sets(), differ)
print(
    f"{cpu.__file__}: {', '.join(cpu.instruction_sets())}; {differ:.2%} of the rows differ from the"
    " definition"
)
