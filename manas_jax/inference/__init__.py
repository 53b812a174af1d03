"""Use of trained networks: images and videos, pretrained weights, import and export."""
