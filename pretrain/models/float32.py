"""Products of float32 numbers that keep the precision of float32, on GPUs too."""

import warnings

import torch


def exact_float32() -> None:
    """Make matrix products and convolutions of float32 tensors in this process use all 24 bits.

    By default, cuDNN rounds the inputs of convolutions to the 11 bits of TF32, and containers of NVIDIA set
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which does so for matrix products. Products in bf16 stay as they are.
    """
    # These two settings are understood by all versions of torch from 2.11 on, and by libraries that read
    # them. torch refuses to read them after its newer `fp32_precision` was set to something else.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some versions announce that they will be renamed
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
