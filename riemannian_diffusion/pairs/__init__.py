"""Morphs of many pairs of images by processes that share a folder. It needs no PyTorch."""
