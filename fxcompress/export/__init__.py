"""Model files: ``archive`` (save, load), ``onnx``, ``masks`` (mask files), ``seeds`` (export_model)."""
