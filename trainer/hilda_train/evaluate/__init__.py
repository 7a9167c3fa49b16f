"""What a pre-trained student is judged by."""
