"""Packed one-bit kernels: layouts, the native library and its paths, operators of torch.library, and their exact form in PyTorch."""
