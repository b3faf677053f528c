"""ONNX export of lowered modules, with parity as a gate."""
