"""A quantized ONNX file as onnxruntime sees it: ``optimized``, ``lint``, ``integer``, ``parity``."""
