"""Compiled models under multi-party computation, with SecretFlow SPU; needs the ONNX file and no torch.

Importing this package imports neither jax nor spu: both come with the extra ``secure``, and only for Python 3.11.
"""
