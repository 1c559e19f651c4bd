"""Pretrained models as training, saved teachers and the command share them."""
