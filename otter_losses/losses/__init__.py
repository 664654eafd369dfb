"""The losses, one a file: a function and its module, compositions of what `otter_losses.ops` computes."""
