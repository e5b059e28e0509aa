"""Parts of the training example `examples/train_lm.py`."""
