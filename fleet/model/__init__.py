"""What a run leaves to be used: encoder and network of a vehicle as one ONNX model, checked and quantised."""
