"""What training loops of several reports share."""
