"""What is on disk: model files and how far they are believed, packed weights, fgq's own functions."""
