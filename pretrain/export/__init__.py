"""A trained encoder for other libraries: timm, transformers, ONNX, torch.export, each in a file here."""
