"""Between torch and ONNX: export, and weights that go back into the suspect's own file."""
