"""What the student is taught: one file per objective, on plain tensors, knowing no dataset, device or logger."""
